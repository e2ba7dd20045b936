"""W3: FedLoRA, rank 8 beside a frozen MLP 784-1024-1024-10, 100 clients; options: compare.py.

python benchmarks/w3_fedlora_mlp.py
"""

import compare
import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    compare.main("W3")
