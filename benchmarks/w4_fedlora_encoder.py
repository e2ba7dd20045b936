"""W4: FedLoRA, rank 8 on query and value of an encoder, 20 clients; options: compare.py.

python benchmarks/w4_fedlora_encoder.py
"""

import compare
import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    compare.main("W4")
