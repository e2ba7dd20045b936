"""W2: FedAvg, FEMNIST CNN, 50 clients; see compare.py for the options.

python benchmarks/w2_fedavg_cnn.py
"""

import compare
import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    compare.main("W2")
