"""
Saves a checkpoint of a RETURNN TensorFlow network with random values in every variable. Runs where TensorFlow is.

  python tests/tf/make_checkpoint.py CONFIG PREFIX SEED
"""

from __future__ import annotations

import os
import sys
import threading


def main(config_file: str, prefix: str, seed: str) -> None:
    os.environ["DISABLE_CUDA"] = "1"
    import numpy as np
    from returnn.config import Config, set_global_config
    from returnn.log import log
    from returnn.tf import compat as tf_compat
    from returnn.tf.network import ExternData, TFNetwork
    from returnn.util.basic import BehaviorVersion

    config = Config()
    config.load_file(config_file)
    set_global_config(config)
    log.initialize(verbosity=[2])
    if config.has("behavior_version"):
        BehaviorVersion.set(config.int("behavior_version", 0))
    tf_compat.v1.disable_eager_execution()
    tf_compat.v1.disable_v2_tensorshape()
    extern_data = ExternData()
    extern_data.init_from_config(config, auto_create_placeholders=True)
    for data in extern_data.data.values():
        data.available_for_inference = True
    network = TFNetwork(config=config, extern_data=extern_data, train_flag=False, eval_flag=True)
    network.construct_from_dict(config.typed_value("network"))
    rng = np.random.default_rng(int(seed))
    with tf_compat.v1.Session() as session:
        network.initialize_params(session)
        for var in sorted(network.get_params_list(), key=lambda v: v.name):
            shape = var.shape.as_list()
            if "variance" in var.name:
                value = rng.uniform(0.3, 2.0, size=shape)
            elif "gamma" in var.name or var.name.endswith("scale:0"):
                value = rng.uniform(0.5, 1.5, size=shape)
            elif len(shape) <= 1 or "mean" in var.name or "beta" in var.name:
                value = rng.normal(size=shape) * 0.3
            else:
                value = rng.normal(size=shape) * 1.5 / np.sqrt(np.prod(shape[:-1]))
            var.load(value.astype(np.float32), session)
        network.set_global_train_step(123456, session)
        network.save_params_to_file(prefix, session)
    reader = tf_compat.v1.train.NewCheckpointReader(prefix)
    dtypes = reader.get_variable_to_dtype_map()
    with open(os.path.join(os.path.dirname(prefix), "tf_params.tsv"), "w", encoding="utf8") as file:
        for name, shape in sorted(reader.get_variable_to_shape_map().items()):
            file.write(f"{name}\t{shape}\t{dtypes[name].name}\n")


if __name__ == "__main__":
    threading.stack_size(512 * 2**20)
    sys.setrecursionlimit(100_000)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(main(*sys.argv[1:]) is None))
    thread.start()
    thread.join()
    sys.exit(0 if done else 1)
