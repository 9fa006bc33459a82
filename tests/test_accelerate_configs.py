"""The launch configurations: accelerate reads them, and the CPU twins are twins."""

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from hf_gradkit.data.resources import find_accelerate_config, resources

BACKENDS = {
    "single_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "two_nodes": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero1": DistributedType.DEEPSPEED,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}
TWINS = ("multi_gpu", "fsdp2", "zero1", "zero2", "zero3")
MAY_DIFFER = {"use_cpu", "num_processes", "mixed_precision", "main_process_port", "fsdp_cpu_ram_efficient_loading"}


def flat(config: dict) -> dict:
    return {
        key: value
        for name, part in config.items()
        for key, value in (part.items() if isinstance(part, dict) else [(name, part)])
    }


def test_the_names_are_trls_and_ours():
    assert set(resources("accelerate_configs")) == {*BACKENDS, *(f"cpu/{name}" for name in TWINS)}


@pytest.mark.parametrize("name", [*BACKENDS, *(f"cpu/{name}" for name in TWINS)])
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(find_accelerate_config(name)))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == BACKENDS[name.removeprefix("cpu/")]
    assert config.use_cpu == name.startswith("cpu/")
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name.endswith("fsdp2"):
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("name", TWINS)
def test_a_cpu_twin_differs_only_in_what_a_cpu_needs(name):
    gpu, cpu = (flat(yaml.safe_load(find_accelerate_config(path).read_text())) for path in (name, f"cpu/{name}"))
    differing = {key for key in {*gpu, *cpu} if gpu.get(key) != cpu.get(key)}
    assert differing <= MAY_DIFFER
    assert cpu["num_processes"] == 2


def test_a_path_is_a_configuration_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\n")
    assert find_accelerate_config(str(path)) == path


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"is 'zero4'.*Did you mean 'zero\d'\? Known names: .*'multi_gpu'"):
        find_accelerate_config("zero4")
