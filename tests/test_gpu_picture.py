import pytest
from matplotlib import pyplot as plt

from benchmarks import gpu_picture
from tests.test_plots import check
from vram_budget import GTX_1650_TI


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.slow
def test_the_picture_of_the_readme_is_readable():
    check(gpu_picture.gpu_picture(GTX_1650_TI, "windows"))


def test_the_script_draws_another_card(tmp_path, capsys):
    file = tmp_path / "T4.png"
    gpu_picture.main(["--card", "tesla t4", "--system", "linux", str(file)])
    assert capsys.readouterr().out == f"picture of the NVIDIA T4 in {file}\n"
    assert file.read_bytes().startswith(b"\x89PNG")
