"""Plays npu-exporter and node exporter: the text of one host, some seconds after its start."""

NPUS = 8


def npu_text(seconds: float) -> str:
    """Some of npu-exporter's metrics of a host with eight devices, of which the third has errors."""
    grows = int(seconds)
    found = {
        "npu_chip_info_temperature": lambda device: 58 + device,
        "npu_chip_info_power": lambda device: 310,
        "npu_chip_info_utilization": lambda device: 80 + device,
        "npu_chip_info_aicore_current_freq": lambda device: 1850,
        "npu_chip_info_hbm_used_memory": lambda device: 53000,
        "npu_chip_info_hbm_total_memory": lambda device: 65536,
        "npu_chip_info_hbm_temperature": lambda device: 60,
        "npu_chip_info_health_status": lambda device: 1,
        "npu_chip_info_network_status": lambda device: 1,
        "npu_chip_info_link_status": lambda device: -1,
        "npu_chip_info_hbm_ecc_single_bit_error_cnt": lambda device: grows if device == 2 else 0,
        "npu_chip_info_hbm_ecc_double_bit_error_cnt": lambda device: grows if device == 2 else 0,
        "npu_chip_info_hccs_statistic_info_crc_err_cnt_1": lambda device: grows if device == 2 else -1,
        "npu_chip_info_hccs_statistic_info_crc_err_cnt_2": lambda device: 0,
        "npu_chip_roce_new_pkt_rty_num": lambda device: grows if device == 2 else 0,
        "npu_chip_roce_rx_err_pkt_num": lambda device: grows if device == 2 else 0,
        "npu_chip_roce_tx_err_pkt_num": lambda device: grows if device == 2 else 0,
        "npu_chip_link_up_num": lambda device: 1,
        "npu_chip_info_bandwidth_tx": lambda device: 4200,
        "npu_chip_info_hccs_bandwidth_info_total_tx": lambda device: 96,
    }
    lines = []
    for name, value in found.items():
        lines.append(f"# TYPE {name} gauge")
        lines += [f'{name}{{id="{device}",model_name="910B3"}} {value(device)}' for device in range(NPUS)]
    return "\n".join(lines) + "\n"


def node_text(seconds: float) -> str:
    """Node exporter's metrics that the dashboard Hosts shows."""
    found = {
        "node_memory_MemAvailable_bytes": (1.2e12, ""),
        "node_memory_MemTotal_bytes": (1.5e12, ""),
        "node_pressure_memory_waiting_seconds_total": (0.001 * seconds, ""),
        "node_network_transmit_bytes_total": (1.1e8 * seconds, 'device="eth0"'),
        "node_network_receive_bytes_total": (1.1e8 * seconds, 'device="eth0"'),
        "node_disk_written_bytes_total": (3e7 * seconds, 'device="nvme0n1"'),
        "node_disk_read_bytes_total": (2e8 * seconds, 'device="nvme0n1"'),
    }
    lines = [f"{name}{{{labels}}} {value}" for name, (value, labels) in found.items()]
    for mode, share in (("idle", 0.6), ("user", 0.35), ("iowait", 0.05)):
        lines.append(f'node_cpu_seconds_total{{cpu="0",mode="{mode}"}} {share * seconds}')
    return "\n".join(lines) + "\n"
