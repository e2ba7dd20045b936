"""W1: FedAvg, MLP 784-200-200-10, 100 clients; see compare.py for the options.

python benchmarks/w1_fedavg_mlp.py
"""

import compare
import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    compare.main("W1")
