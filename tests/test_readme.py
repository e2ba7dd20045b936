"""What the README shows is run."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_readmes_python_runs_and_learns(capsys):
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, namespace)
    printed = capsys.readouterr().out.split()
    accuracy = [float(word) for word in printed[2::3] if word != "None"]
    assert len(accuracy) == 4  # two runs of 20 rounds, evaluated every 10
    assert min(accuracy[1], accuracy[3]) > 0.7


def test_ci_runs_the_command_that_the_readme_gives():
    ci = (pathlib.Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert 'grep -m 1 -- "-m pytest" README.md' in ci
    assert len(re.findall("-m pytest", README)) == 1
