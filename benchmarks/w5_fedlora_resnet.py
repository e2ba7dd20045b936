"""W5: FedLoRA, rank 16 beside a frozen ResNet-10, 10 clients; see compare.py for the options.

python benchmarks/w5_fedlora_resnet.py
"""

import compare
import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    compare.main("W5")
