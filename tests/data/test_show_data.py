import contextlib
import io

from jaxcls.commands import show

CONFIG = """
from jaxcls.config import Config, DataConfig, ModelConfig

def get_config():
    data = DataConfig(source="folder:{}", batch_size=64)
    return Config(model=ModelConfig(), data=data, num_epochs=1)
"""


def test_a_set_smaller_than_a_batch_is_drawn(make_photos, tmp_path):
    (tmp_path / "small.py").write_text(CONFIG.format(make_photos({"cat": 3, "dog": 4})))
    picture = tmp_path / "raw.svg"
    with contextlib.redirect_stdout(io.StringIO()):
        assert show.run(["data", str(tmp_path / "small.py"), "-o", str(picture)]) == 0
    assert picture.read_text().startswith("<?xml")
