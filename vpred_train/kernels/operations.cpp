// The slow operations on CPU. The networks', for ops.Custom(func_type="aot"): convolution, linear maps, normalisation,
// GEGLU, attention. The trainer's, for ctypes: AdamW and the moving average.
//
// All tensors are float32 and dense. Convolution runs in the oneDNN that MindSpore brings along, in that library's own
// blocked layouts; the rest is written so that the compiler vectorises it. One operation runs at a time.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dnnl.hpp"

// In the library, but not in the headers of a build for OpenMP. A null thread pool: the calling thread alone.
extern "C" dnnl_status_t dnnl_threadpool_interop_stream_create(dnnl_stream_t *stream, dnnl_engine_t engine, void *pool);
extern "C" dnnl_status_t dnnl_threadpool_interop_sgemm(char transa, char transb, dnnl_dim_t M, dnnl_dim_t N,
                                                       dnnl_dim_t K, float alpha, const float *A, dnnl_dim_t lda,
                                                       const float *B, dnnl_dim_t ldb, float beta, float *C,
                                                       dnnl_dim_t ldc, void *pool);

namespace {

using Shape = dnnl::memory::dims;

// oneDNN's threadpool_iface, version 3.10: the order of the virtual functions is what matters.
struct PoolInterface {
  virtual int get_num_threads() const = 0;
  virtual bool get_in_parallel() const = 0;
  virtual void parallel_for(int n, const std::function<void(int, int)> &task) = 0;
  virtual uint64_t get_flags() const = 0;
  virtual void wait() = 0;
  virtual ~PoolInterface() = default;
};

thread_local bool in_parallel = false;

// `threads` - 1 workers beside the caller. They sleep between tasks: the cores are MindSpore's then.
class Pool : public PoolInterface {
 public:
  explicit Pool(int threads) {
    for (int index = 1; index < threads; ++index) workers_.emplace_back([this] { work(); });
  }
  ~Pool() override {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      ending_ = true;
      ++round_;
    }
    wake_.notify_all();
    for (auto &worker : workers_) worker.join();
  }
  int get_num_threads() const override { return static_cast<int>(workers_.size()) + 1; }
  bool get_in_parallel() const override { return in_parallel; }
  uint64_t get_flags() const override { return 0; }
  void wait() override {}

  void parallel_for(int n, const std::function<void(int, int)> &task) override {
    if (n == 1 || workers_.empty() || in_parallel) {
      for (int index = 0; index < n; ++index) task(index, n);
      return;
    }
    {
      std::lock_guard<std::mutex> guard(mutex_);
      task_ = &task;
      total_ = n;
      next_ = 0;
      busy_ = static_cast<int>(workers_.size());
      ++round_;
    }
    wake_.notify_all();
    take_turns();
    while (busy_.load(std::memory_order_acquire) != 0) pause();
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }
  void take_turns() {
    in_parallel = true;
    for (int index; (index = next_.fetch_add(1)) < total_;) (*task_)(index, total_);
    in_parallel = false;
  }
  void work() {
    for (uint64_t seen = 0;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_.load() != seen; });
        seen = round_;
        if (ending_) return;
      }
      take_turns();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> next_{0}, busy_{0};
  const std::function<void(int, int)> *task_ = nullptr;
  int total_ = 0;
  bool ending_ = false;
};

// What the operations share: threads, scratch memory that only grows, and prepared convolutions.
struct Shared {
  std::mutex one_at_a_time;
  std::unique_ptr<Pool> pool = std::make_unique<Pool>(1);
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream;
  std::unique_ptr<char, void (*)(void *)> memory{nullptr, std::free};
  size_t memory_bytes = 0;

  Shared() { use(1); }
  void use(int threads) {
    pool = std::make_unique<Pool>(threads);
    dnnl_stream_t handle;
    dnnl::error::wrap_c_api(
        dnnl_threadpool_interop_stream_create(&handle, engine.get(), static_cast<PoolInterface *>(pool.get())),
        "cannot make a stream");
    stream.reset(handle);
  }
  char *scratch(size_t bytes) {
    if (bytes > memory_bytes) {
      memory.reset();
      memory.reset(static_cast<char *>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
      if (!memory) throw std::bad_alloc();
      memory_bytes = bytes;
    }
    return memory.get();
  }
};

Shared &shared() {
  static Shared instance;
  return instance;
}

// ---- helpers -------------------------------------------------------------------------------------------------------

// task(begin, end) on shares of [0, n), one for each thread, of at least `smallest`.
template <typename Task>
void share_out(int64_t n, const Task &task, int64_t smallest = 1) {
  Pool &pool = *shared().pool;
  const int64_t parts = std::clamp<int64_t>(n / smallest, 1, pool.get_num_threads());
  pool.parallel_for(static_cast<int>(parts),
                    [&](int part, int) { task(n * part / parts, n * (part + 1) / parts); });
}

// e^x in float32 by range reduction and a polynomial: 2e-7 relative, and the compiler can vectorise it.
inline float exp_32(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = std::floor(x * 1.44269504089f + 0.5f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_32(-x)); }

// The normal distribution's Phi(x), and e^(-x^2/2): Abramowitz & Stegun 1964, 7.1.26, 1.5e-7 absolute.
inline float normal_cdf(float x, float *bell) {
  const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * std::fabs(x));
  *bell = exp_32(-0.5f * x * x);
  const float series =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * series * *bell;
  return x < 0 ? tail : 1.0f - tail;
}

inline float dot(const float *a, const float *b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline float total(const float *a, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i];
  return sum;
}

inline float largest(const float *a, int64_t n) {
  constexpr int kLanes = 16;  // compared side by side, since no compiler reorders a maximum by itself
  float lanes[kLanes], highest = a[0];
  std::fill(lanes, lanes + kLanes, a[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = a[i + lane] > lanes[lane] ? a[i + lane] : lanes[lane];
  for (; i < n; ++i) highest = a[i] > highest ? a[i] : highest;
  for (float lane : lanes) highest = lane > highest ? lane : highest;
  return highest;
}

// The arguments of an operation: inputs, then outputs.
struct Arguments {
  int count;
  void **pointers;
  int *ndims;
  int64_t **shapes;

  std::vector<void *> all() const { return std::vector<void *>(pointers, pointers + count); }
  float *operator[](int index) const { return static_cast<float *>(pointers[index]); }
  Shape shape(int index) const { return Shape(shapes[index], shapes[index] + ndims[index]); }
  int64_t size(int index) const {
    int64_t product = 1;
    for (int axis = 0; axis < ndims[index]; ++axis) product *= shapes[index][axis];
    return product;
  }
  int64_t last(int index) const { return shapes[index][ndims[index] - 1]; }
  std::string text() const {
    std::string text;
    for (int index = 0; index < count; ++index) {
      text += " (";
      for (int64_t side : shape(index)) text += std::to_string(side) + " ";
      text.back() = ')';
    }
    return text;
  }
};

// Every operation's entry: 0, or on any error a message and 1, upon which MindSpore raises.
template <typename Operation>
int guarded(const char *name, const std::string &details, const Operation &operation) {
  try {
    std::lock_guard<std::mutex> guard(shared().one_at_a_time);
    operation();
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s%s: %s\n", name, details.c_str(), error.what());
    return 1;
  }
}

// ---- convolution ---------------------------------------------------------------------------------------------------

// A oneDNN primitive with its operands; those that it wants in another layout than ours go through scratch memory.
struct Prepared {
  struct Operand {
    int kind, argument;
    bool output;
    dnnl::memory::desc plain, used;
    dnnl::reorder reorder;
    size_t offset;
  };
  dnnl::primitive primitive;
  std::vector<Operand> operands;
  dnnl::memory::desc workspace;
  size_t scratch_bytes = 0;

  void add(int kind, int argument, bool output, const Shape &shape, const dnnl::memory::desc &used) {
    static const dnnl::memory::format_tag tags[] = {dnnl::memory::format_tag::a, dnnl::memory::format_tag::abcd};
    add(kind, argument, output, dnnl::memory::desc(shape, dnnl::memory::data_type::f32, tags[shape.size() == 4]), used);
  }
  void add(int kind, int argument, bool output, const dnnl::memory::desc &plain, const dnnl::memory::desc &used) {
    Operand operand{kind, argument, output, plain, used, {}, 0};
    if (plain != used) {
      auto &engine = shared().engine;
      const auto &from = output ? used : plain, &to = output ? plain : used;
      operand.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to));
      operand.offset = reserve(used.get_size());
    }
    operands.push_back(operand);
  }
  size_t reserve(size_t bytes) {
    const size_t offset = scratch_bytes;
    scratch_bytes += (bytes + 63) / 64 * 64;
    return offset;
  }
  void run(const std::vector<void *> &arguments) {
    auto &[mutex, pool, engine, stream, memory, bytes] = shared();
    char *scratch = shared().scratch(scratch_bytes + workspace.get_size());
    std::unordered_map<int, dnnl::memory> bound;
    bound[DNNL_ARG_SCRATCHPAD] = dnnl::memory(workspace, engine, scratch + scratch_bytes);
    for (auto &operand : operands) {
      dnnl::memory plain(operand.plain, engine, arguments[operand.argument]);
      if (operand.plain == operand.used) {
        bound[operand.kind] = plain;
        continue;
      }
      bound[operand.kind] = dnnl::memory(operand.used, engine, scratch + operand.offset);
      if (!operand.output) operand.reorder.execute(stream, plain, bound[operand.kind]);
    }
    primitive.execute(stream, bound);
    for (auto &operand : operands) {
      if (!operand.output || operand.plain == operand.used) continue;
      dnnl::memory plain(operand.plain, engine, arguments[operand.argument]);
      operand.reorder.execute(stream, bound[operand.kind], plain);
    }
  }
};

struct Geometry {
  Shape x, weight, y, bias, strides, before, after;

  // Padding is kernel // 2, or with `at_end` only below and on the right.
  Geometry(const Shape &x, const Shape &weight, const Shape &y, bool at_end) : x(x), weight(weight), y(y) {
    bias = {y[1]};
    for (int axis : {2, 3}) {
      const int64_t first = at_end ? 0 : weight[axis] / 2;
      const int64_t stride = x[2] == y[2] && x[3] == y[3] ? 1 : 2;
      strides.push_back(stride);
      before.push_back(first);
      after.push_back((y[axis] - 1) * stride + weight[axis] - x[axis] - first);
    }
  }
  std::string key(const char *kind) const {
    std::string text = kind;
    for (const Shape *shape : {&x, &weight, &y, &before})
      for (int64_t side : *shape) text += "," + std::to_string(side);
    return text;
  }
};

dnnl::memory::desc any(const Shape &shape) {
  return {shape, dnnl::memory::data_type::f32, dnnl::memory::format_tag::any};
}

dnnl::convolution_forward::primitive_desc forward_description(const Geometry &g, const dnnl::primitive_attr &attr) {
  return {shared().engine, dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, any(g.x),
          any(g.weight), any(g.bias), any(g.y), g.strides, g.before, g.after, attr};
}

template <typename Make>
Prepared &prepared(const std::string &key, const Make &make) {
  static std::map<std::string, Prepared> known;
  auto found = known.find(key);
  if (found == known.end()) {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    Prepared fresh;
    make(fresh, attr);
    found = known.emplace(key, std::move(fresh)).first;
  }
  return found->second;
}

// x, weight, bias -> y
void convolution_forward(const Arguments &a, bool at_end) {
  const Geometry g(a.shape(0), a.shape(1), a.shape(3), at_end);
  prepared(g.key("forward"), [&](Prepared &fresh, const dnnl::primitive_attr &attr) {
    const auto description = forward_description(g, attr);
    fresh.primitive = dnnl::convolution_forward(description);
    fresh.workspace = description.scratchpad_desc();
    fresh.add(DNNL_ARG_SRC, 0, false, g.x, description.src_desc());
    fresh.add(DNNL_ARG_WEIGHTS, 1, false, g.weight, description.weights_desc());
    fresh.add(DNNL_ARG_BIAS, 2, false, g.bias, description.bias_desc());
    fresh.add(DNNL_ARG_DST, 3, true, g.y, description.dst_desc());
  }).run(a.all());
}

// dy, weight, x (for its shape) -> dx
void convolution_backward_x(const Arguments &a, bool at_end) {
  const Geometry g(a.shape(3), a.shape(1), a.shape(0), at_end);
  prepared(g.key("backward x"), [&](Prepared &fresh, const dnnl::primitive_attr &attr) {
    const dnnl::convolution_backward_data::primitive_desc description(
        shared().engine, dnnl::algorithm::convolution_direct, any(g.x), any(g.weight), any(g.y), g.strides, g.before,
        g.after, forward_description(g, attr), attr);
    fresh.primitive = dnnl::convolution_backward_data(description);
    fresh.workspace = description.scratchpad_desc();
    fresh.add(DNNL_ARG_DIFF_DST, 0, false, g.y, description.diff_dst_desc());
    fresh.add(DNNL_ARG_WEIGHTS, 1, false, g.weight, description.weights_desc());
    fresh.add(DNNL_ARG_DIFF_SRC, 3, true, g.x, description.diff_src_desc());
  }).run(a.all());
}

// dy, x, weight (for its shape) -> dweight, dbias
void convolution_backward_weight(const Arguments &a, bool at_end) {
  const Geometry g(a.shape(1), a.shape(2), a.shape(0), at_end);
  prepared(g.key("backward weight"), [&](Prepared &fresh, const dnnl::primitive_attr &attr) {
    const dnnl::convolution_backward_weights::primitive_desc description(
        shared().engine, dnnl::algorithm::convolution_direct, any(g.x), any(g.weight), any(g.bias), any(g.y),
        g.strides, g.before, g.after, forward_description(g, attr), attr);
    fresh.primitive = dnnl::convolution_backward_weights(description);
    fresh.workspace = description.scratchpad_desc();
    fresh.add(DNNL_ARG_DIFF_DST, 0, false, g.y, description.diff_dst_desc());
    fresh.add(DNNL_ARG_SRC, 1, false, g.x, description.src_desc());
    fresh.add(DNNL_ARG_DIFF_WEIGHTS, 3, true, g.weight, description.diff_weights_desc());
    fresh.add(DNNL_ARG_DIFF_BIAS, 4, true, g.bias, description.diff_bias_desc());
  }).run(a.all());
}

// ---- linear maps ---------------------------------------------------------------------------------------------------

// C (m, n) = A B, with a bias (n) added to each row if there is one. A `turned` operand is stored transposed.
struct Product {
  int64_t m, n, k;
  bool a_turned, b_turned;

  static dnnl::memory::desc matrix(int64_t rows, int64_t columns, bool turned) {
    return {{rows, columns}, dnnl::memory::data_type::f32, turned ? Shape{1, rows} : Shape{columns, 1}};
  }
  void run(const float *a, const float *b, const float *bias, float *c) const {
    const std::string key = "product," + std::to_string(m) + "," + std::to_string(n) + "," + std::to_string(k) +
                            (a_turned ? "t" : "") + (b_turned ? ",t" : ",") + (bias ? "+" : "");
    Prepared &product = prepared(key, [&](Prepared &fresh, const dnnl::primitive_attr &attr) {
      const auto left = matrix(m, k, a_turned), right = matrix(k, n, b_turned), result = matrix(m, n, false);
      auto &engine = shared().engine;
      const dnnl::matmul::primitive_desc description =
          bias ? dnnl::matmul::primitive_desc(engine, left, right, matrix(1, n, false), result, attr)
               : dnnl::matmul::primitive_desc(engine, left, right, result, attr);
      fresh.primitive = dnnl::matmul(description);
      fresh.workspace = description.scratchpad_desc();
      fresh.add(DNNL_ARG_SRC, 0, false, left, left);
      fresh.add(DNNL_ARG_WEIGHTS, 1, false, right, right);
      if (bias) fresh.add(DNNL_ARG_BIAS, 2, false, matrix(1, n, false), matrix(1, n, false));
      fresh.add(DNNL_ARG_DST, 3, true, result, result);
    });
    product.run({const_cast<float *>(a), const_cast<float *>(b), const_cast<float *>(bias), c});
  }
};

// x (..., in), weight (out, in), and with a bias that (out,) -> y (..., out)
void linear(const Arguments &a, bool biased) {
  const int64_t rows = a.size(0) / a.last(0);
  Product{rows, a.shape(1)[0], a.last(0), false, true}.run(a[0], a[1], biased ? a[2] : nullptr, a[biased ? 3 : 2]);
}

// dy (..., out), weight -> dx
void linear_backward_x(const Arguments &a) {
  Product{a.size(0) / a.last(0), a.last(1), a.last(0), false, false}.run(a[0], a[1], nullptr, a[2]);
}

// dy, x -> dweight
void linear_backward_weight(const Arguments &a) {
  Product{a.last(0), a.last(1), a.size(0) / a.last(0), true, false}.run(a[0], a[1], nullptr, a[2]);
}

// dy (..., out) -> dbias (out,)
void linear_backward_bias(const Arguments &a) {
  const int64_t width = a.last(0), rows = a.size(0) / width;
  const float *dy = a[0];
  float *dbias = a[1];
  share_out(width, [=](int64_t begin, int64_t end) {
    std::fill(dbias + begin, dbias + end, 0.0f);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = begin; i < end; ++i) dbias[i] += dy[row * width + i];
  });
}

// ---- normalisation -------------------------------------------------------------------------------------------------

// Mean and 1 / sqrt(variance + eps) of x[0 .. n).
inline void moments(const float *x, int64_t n, float eps, float *mean, float *rstd) {
  constexpr int64_t kBlock = 4096;  // float32 sums of so many are exact enough; float64 adds them up
  double sum = 0, squares = 0;
  for (int64_t start = 0; start < n; start += kBlock) sum += total(x + start, std::min(kBlock, n - start));
  const float centre = static_cast<float>(sum / n);
  for (int64_t start = 0; start < n; start += kBlock) {
    float part = 0;
    const int64_t end = std::min(n, start + kBlock);
    for (int64_t i = start; i < end; ++i) part += (x[i] - centre) * (x[i] - centre);
    squares += part;
  }
  *mean = centre;
  *rstd = static_cast<float>(1.0 / std::sqrt(squares / n + eps));
}

// x (B, C, H, W), weight, bias, eps (1,) -> y, mean (B, groups), rstd (B, groups)
template <bool kSilu>
void group_norm(const Arguments &a) {
  const Shape shape = a.shape(0);
  const int64_t channels = shape[1], pixels = shape[2] * shape[3], groups = a.last(5), width = channels / groups;
  const float *x = a[0], *weight = a[1], *bias = a[2], eps = *a[3];
  float *y = a[4], *means = a[5], *rstds = a[6];
  share_out(shape[0] * groups, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      moments(x + group * width * pixels, width * pixels, eps, means + group, rstds + group);
      for (int64_t row = group * width; row < (group + 1) * width; ++row) {
        const float scale = weight[row % channels] * rstds[group];
        const float shift = bias[row % channels] - means[group] * scale;
        const float *in = x + row * pixels;
        float *out = y + row * pixels;
        for (int64_t i = 0; i < pixels; ++i) {
          const float h = in[i] * scale + shift;
          out[i] = kSilu ? h * sigmoid(h) : h;
        }
      }
    }
  });
}

// dy, x, weight, bias, mean, rstd -> dx, and for each row of pixels its part of dweight and dbias (B, C)
template <bool kSilu>
void group_norm_backward(const Arguments &a) {
  const Shape shape = a.shape(1);
  const int64_t channels = shape[1], pixels = shape[2] * shape[3], groups = a.last(4), width = channels / groups;
  const float *dy = a[0], *x = a[1], *weight = a[2], *bias = a[3], *means = a[4], *rstds = a[5];
  float *dx = a[6], *dweight = a[7], *dbias = a[8];
  share_out(shape[0] * groups, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const float mean = means[group], rstd = rstds[group];
      double sum = 0, product = 0;
      for (int64_t row = group * width; row < (group + 1) * width; ++row) {
        const float w = weight[row % channels], b = bias[row % channels];
        const float *in = x + row * pixels, *upstream = dy + row * pixels;
        float *out = dx + row * pixels;
        float row_sum = 0, row_product = 0;
        for (int64_t i = 0; i < pixels; ++i) {
          const float normal = (in[i] - mean) * rstd;
          float d = upstream[i];
          if (kSilu) {
            const float h = normal * w + b, s = sigmoid(h);
            d *= s * (1.0f + h * (1.0f - s));
          }
          out[i] = d;
          row_sum += d;
          row_product += d * normal;
        }
        dweight[row] = row_product;
        dbias[row] = row_sum;
        sum += w * row_sum;
        product += w * row_product;
      }
      const double count = static_cast<double>(width * pixels);
      const float along = static_cast<float>(product / count) * rstd;
      const float level = static_cast<float>(sum / count);
      for (int64_t row = group * width; row < (group + 1) * width; ++row) {
        const float w = weight[row % channels];
        const float *in = x + row * pixels;
        float *out = dx + row * pixels;
        for (int64_t i = 0; i < pixels; ++i) out[i] = rstd * (w * out[i] - level - (in[i] - mean) * along);
      }
    }
  });
}

// x (..., C), weight, bias, eps (1,) -> y, mean, rstd (one of each for a row)
void layer_norm(const Arguments &a) {
  const int64_t width = a.last(0);
  const float *x = a[0], *weight = a[1], *bias = a[2], eps = *a[3];
  float *y = a[4], *means = a[5], *rstds = a[6];
  share_out(a.size(0) / width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * width;
      float *out = y + row * width;
      moments(in, width, eps, means + row, rstds + row);
      const float mean = means[row], rstd = rstds[row];
      for (int64_t i = 0; i < width; ++i) out[i] = (in[i] - mean) * rstd * weight[i] + bias[i];
    }
  });
}

// dy, x, weight, mean, rstd -> dx, dweight, dbias
void layer_norm_backward(const Arguments &a) {
  const int64_t width = a.last(1), rows = a.size(1) / width;
  const float *dy = a[0], *x = a[1], *weight = a[2], *means = a[3], *rstds = a[4];
  float *dx = a[5], *dweight = a[6], *dbias = a[7];
  // Each share of the rows adds up its own part of the weight's and bias's gradient.
  const int64_t parts = std::min<int64_t>(rows, shared().pool->get_num_threads());
  float *sums = reinterpret_cast<float *>(shared().scratch(sizeof(float) * 2 * width * parts));
  std::fill(sums, sums + 2 * width * parts, 0.0f);
  shared().pool->parallel_for(static_cast<int>(parts), [=](int part, int) {
    float *dw = sums + 2 * width * part, *db = dw + width;
    for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
      const float *in = x + row * width, *upstream = dy + row * width;
      const float mean = means[row], rstd = rstds[row];
      float *out = dx + row * width;
      float sum = 0, product = 0;
      for (int64_t i = 0; i < width; ++i) {
        const float normal = (in[i] - mean) * rstd, d = upstream[i] * weight[i];
        dw[i] += upstream[i] * normal;
        db[i] += upstream[i];
        sum += d;
        product += d * normal;
      }
      const float level = sum / width, along = product / width;
      for (int64_t i = 0; i < width; ++i)
        out[i] = rstd * (upstream[i] * weight[i] - level - (in[i] - mean) * rstd * along);
    }
  });
  for (int64_t i = 0; i < width; ++i) {
    dweight[i] = dbias[i] = 0;
    for (int64_t part = 0; part < parts; ++part) {
      dweight[i] += sums[2 * width * part + i];
      dbias[i] += sums[2 * width * part + width + i];
    }
  }
}

// ---- GEGLU ---------------------------------------------------------------------------------------------------------

// x (..., 2 C): values, then gates -> y (..., C)
void geglu(const Arguments &a) {
  const int64_t width = a.last(1);
  const float *x = a[0];
  float *y = a[1];
  share_out(a.size(1) / width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *value = x + 2 * row * width, *gate = value + width;
      float *out = y + row * width;
      for (int64_t i = 0; i < width; ++i) {
        float bell;
        out[i] = value[i] * gate[i] * normal_cdf(gate[i], &bell);
      }
    }
  });
}

// dy, x -> dx
void geglu_backward(const Arguments &a) {
  const int64_t width = a.last(0);
  const float *dy = a[0], *x = a[1];
  float *dx = a[2];
  share_out(a.size(0) / width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *value = x + 2 * row * width, *gate = value + width, *upstream = dy + row * width;
      float *dvalue = dx + 2 * row * width, *dgate = dvalue + width;
      for (int64_t i = 0; i < width; ++i) {
        float bell;
        const float phi = normal_cdf(gate[i], &bell);
        dvalue[i] = upstream[i] * gate[i] * phi;
        dgate[i] = upstream[i] * value[i] * (phi + gate[i] * 0.39894228f * bell);
      }
    }
  });
}

// ---- doubling ------------------------------------------------------------------------------------------------------

// x (B, C, H, W) -> y (B, C, 2 H, 2 W), each pixel four times
void doubled(const Arguments &a) {
  const int64_t width = a.last(0);
  const float *x = a[0];
  float *y = a[1];
  share_out(a.size(0) / width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *in = x + row * width;
      float *out = y + 4 * row * width;
      for (int64_t i = 0; i < width; ++i) out[2 * i] = out[2 * i + 1] = in[i];
      std::copy(out, out + 2 * width, out + 2 * width);
    }
  });
}

// dy -> dx
void doubled_backward(const Arguments &a) {
  const int64_t width = a.last(1);
  const float *dy = a[0];
  float *dx = a[1];
  share_out(a.size(1) / width, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *upper = dy + 4 * row * width, *lower = upper + 2 * width;
      float *out = dx + row * width;
      for (int64_t i = 0; i < width; ++i) out[i] = upper[2 * i] + upper[2 * i + 1] + lower[2 * i] + lower[2 * i + 1];
    }
  });
}

// ---- attention -----------------------------------------------------------------------------------------------------

// C (m, n) = alpha A B + beta C, row-major; `a_turned`, `b_turned`: the operand is stored transposed.
inline void product(bool a_turned, bool b_turned, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                    int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  dnnl::error::wrap_c_api(dnnl_threadpool_interop_sgemm(a_turned ? 'T' : 'N', b_turned ? 'T' : 'N', m, n, k, alpha, a,
                                                        lda, b, ldb, beta, c, ldc, nullptr),
                          "matrix product failed");
}

// How many queries at a time, so that their logits stay in a core's cache.
inline int64_t queries_at_once(int64_t queries, int64_t keys) {
  return std::min(queries, std::max<int64_t>(16, (1 << 16) / keys));
}

struct Heads {
  int64_t batch, heads, queries, keys, inner, head, block;
  float scale;

  Heads(const Shape &q, const Shape &k, int64_t heads)
      : batch(q[0]), heads(heads), queries(q[1]), keys(k[1]), inner(q[2]), head(q[2] / heads),
        block(queries_at_once(q[1], k[1])), scale(1.0f / std::sqrt(static_cast<float>(head))) {}
};

// q (B, N, heads d), k and v (B, M, heads d) -> y like q, log_sum (B, heads, N): of the exponentials of a query's logits
void attention(const Arguments &a) {
  const Heads h(a.shape(0), a.shape(1), a.shape(4)[1]);
  const float *q = a[0], *k = a[1], *v = a[2];
  float *y = a[3], *log_sums = a[4];
  const int64_t blocks = (h.queries + h.block - 1) / h.block, tasks = h.batch * h.heads * blocks;
  const int64_t each = h.block * h.keys;
  float *scratch = reinterpret_cast<float *>(shared().scratch(sizeof(float) * each * shared().pool->get_num_threads()));
  std::atomic<int> slots{0};
  share_out(tasks, [&](int64_t begin, int64_t end) {
    float *logits = scratch + each * slots.fetch_add(1);
    std::vector<float> sums(h.block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / (h.heads * blocks), head = task / blocks % h.heads, first = task % blocks * h.block;
      const int64_t count = std::min(h.block, h.queries - first);
      const float *keys = k + sample * h.keys * h.inner + head * h.head;
      const float *values = v + sample * h.keys * h.inner + head * h.head;
      const int64_t start = (sample * h.queries + first) * h.inner + head * h.head;
      float *log_sum = log_sums + (sample * h.heads + head) * h.queries + first;
      product(false, true, count, h.keys, h.head, h.scale, q + start, h.inner, keys, h.inner, 0, logits, h.keys);
      for (int64_t row = 0; row < count; ++row) {
        float *line = logits + row * h.keys, sum = 0;
        const float highest = largest(line, h.keys);
        for (int64_t i = 0; i < h.keys; ++i) {
          line[i] = exp_32(line[i] - highest);
          sum += line[i];
        }
        log_sum[row] = highest + std::log(sum);
        sums[row] = sum;
      }
      product(false, false, count, h.head, h.keys, 1, logits, h.keys, values, h.inner, 0, y + start, h.inner);
      for (int64_t row = 0; row < count; ++row) {
        float *out = y + start + row * h.inner;
        for (int64_t i = 0; i < h.head; ++i) out[i] /= sums[row];
      }
    }
  });
}

// dy, q, k, v, y, log_sum -> dq, dk, dv (Dao et al. 2022, arXiv 2205.14135, appendix B.2)
void attention_backward(const Arguments &a) {
  const Heads h(a.shape(1), a.shape(2), a.shape(5)[1]);
  const float *dy = a[0], *q = a[1], *k = a[2], *v = a[3], *y = a[4], *log_sums = a[5];
  float *dq = a[6], *dk = a[7], *dv = a[8];
  const int64_t each = 2 * h.block * h.keys;
  float *scratch = reinterpret_cast<float *>(shared().scratch(sizeof(float) * each * shared().pool->get_num_threads()));
  std::atomic<int> slots{0};
  share_out(h.batch * h.heads, [&](int64_t begin, int64_t end) {
    float *p = scratch + each * slots.fetch_add(1), *dp = p + h.block * h.keys;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / h.heads, head = task % h.heads;
      const int64_t shift = sample * h.keys * h.inner + head * h.head;
      for (int64_t first = 0; first < h.queries; first += h.block) {
        const int64_t count = std::min(h.block, h.queries - first);
        const int64_t start = (sample * h.queries + first) * h.inner + head * h.head;
        const float *log_sum = log_sums + (sample * h.heads + head) * h.queries + first;
        const float more = first ? 1.0f : 0.0f;
        product(false, true, count, h.keys, h.head, h.scale, q + start, h.inner, k + shift, h.inner, 0, p, h.keys);
        product(false, true, count, h.keys, h.head, 1, dy + start, h.inner, v + shift, h.inner, 0, dp, h.keys);
        for (int64_t row = 0; row < count; ++row) {
          float *line = p + row * h.keys, *dline = dp + row * h.keys;
          const float level = dot(dy + start + row * h.inner, y + start + row * h.inner, h.head);
          for (int64_t i = 0; i < h.keys; ++i) {
            line[i] = exp_32(line[i] - log_sum[row]);
            dline[i] = line[i] * (dline[i] - level) * h.scale;
          }
        }
        product(true, false, h.keys, h.head, count, 1, p, h.keys, dy + start, h.inner, more, dv + shift, h.inner);
        product(false, false, count, h.head, h.keys, 1, dp, h.keys, k + shift, h.inner, 0, dq + start, h.inner);
        product(true, false, h.keys, h.head, count, 1, dp, h.keys, q + start, h.inner, more, dk + shift, h.inner);
      }
    }
  });
}

// ---- the update ----------------------------------------------------------------------------------------------------

// Loshchilov & Hutter 2019, alg. 2, on [0, n). `scale` multiplies the gradient, `keep` the weights: the decay.
struct AdamW {
  float beta1, beta2, step_size, root_correction, epsilon, keep, scale;

  void step(float *weights, const float *gradient, float *m, float *v, int64_t n) const {
    const float share1 = 1.0f - beta1, share2 = 1.0f - beta2;
    for (int64_t i = 0; i < n; ++i) {
      const float g = gradient[i] * scale;
      m[i] = beta1 * m[i] + share1 * g;
      v[i] = beta2 * v[i] + share2 * (g * g);
      weights[i] = keep * weights[i] - step_size * (m[i] / (std::sqrt(v[i]) * root_correction + epsilon));
    }
  }
};

}  // namespace

// MindSpore's interface of a compiled operation.
#define OPERATION(NAME, CALL)                                                                                \
  extern "C" int NAME(int count, void **pointers, int *ndims, int64_t **shapes, const char **, void *, void *) {   \
    const Arguments arguments{count, pointers, ndims, shapes};                                               \
    return guarded(#NAME, arguments.text(), [&] { CALL; });                                                  \
  }

OPERATION(vpred_convolution, convolution_forward(arguments, false))
OPERATION(vpred_convolution_backward_x, convolution_backward_x(arguments, false))
OPERATION(vpred_convolution_backward_weight, convolution_backward_weight(arguments, false))
OPERATION(vpred_convolution_at_end, convolution_forward(arguments, true))
OPERATION(vpred_convolution_at_end_backward_x, convolution_backward_x(arguments, true))
OPERATION(vpred_convolution_at_end_backward_weight, convolution_backward_weight(arguments, true))
OPERATION(vpred_linear, linear(arguments, false))
OPERATION(vpred_linear_biased, linear(arguments, true))
OPERATION(vpred_linear_backward_x, linear_backward_x(arguments))
OPERATION(vpred_linear_backward_weight, linear_backward_weight(arguments))
OPERATION(vpred_linear_backward_bias, linear_backward_bias(arguments))
OPERATION(vpred_group_norm, group_norm<false>(arguments))
OPERATION(vpred_group_norm_backward, group_norm_backward<false>(arguments))
OPERATION(vpred_group_norm_silu, group_norm<true>(arguments))
OPERATION(vpred_group_norm_silu_backward, group_norm_backward<true>(arguments))
OPERATION(vpred_layer_norm, layer_norm(arguments))
OPERATION(vpred_layer_norm_backward, layer_norm_backward(arguments))
OPERATION(vpred_geglu, geglu(arguments))
OPERATION(vpred_geglu_backward, geglu_backward(arguments))
OPERATION(vpred_doubled, doubled(arguments))
OPERATION(vpred_doubled_backward, doubled_backward(arguments))
OPERATION(vpred_attention, attention(arguments))
OPERATION(vpred_attention_backward, attention_backward(arguments))

// Compute on so many threads from now on. Call it while no operation runs.
extern "C" int vpred_use_threads(int threads) {
  return guarded("vpred_use_threads", "", [&] { shared().use(threads); });
}

// The update's ranges: less is done sooner than a thread wakes.
constexpr int64_t kWorthAThread = 1 << 14;

// AdamW on ranges of n elements, in place.
extern "C" void vpred_adamw(float *weights, const float *gradient, float *m, float *v, int64_t n, float beta1,
                            float beta2, float step_size, float root_correction, float epsilon, float keep,
                            float scale) {
  std::lock_guard<std::mutex> guard(shared().one_at_a_time);
  const AdamW update{beta1, beta2, step_size, root_correction, epsilon, keep, scale};
  share_out(
      n,
      [&](int64_t begin, int64_t end) {
        update.step(weights + begin, gradient + begin, m + begin, v + begin, end - begin);
      },
      kWorthAThread);
}

// average += share (values - average) on ranges of n elements.
extern "C" void vpred_average(float *average, const float *values, int64_t n, float share) {
  std::lock_guard<std::mutex> guard(shared().one_at_a_time);
  share_out(
      n,
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) average[i] += share * (values[i] - average[i]);
      },
      kWorthAThread);
}
