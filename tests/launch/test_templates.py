"""`alignkit launch`: what it prints reaches the stage word for word, whatever starts it."""

import ast
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from launch.cli import COMMANDS
from launch.errors import UserError
from launch.templates import main
from tests.support import environment

ODD = [
    "--config",
    'my runs/it\'s "$HOME".yaml',
    "--output_dir",
    "/runs/a b",
    "--x",
    "{a: [1, 'b']}",
    "--y",
    "$(id) `id` $((1))",
]
ODD += ["--z", "", "--w", "a\\b !# & | ; * ? ~ % größe: -", "--v=$$"]
STAGES = [
    (module, name) for name, (module, attribute, _) in COMMANDS.items() if attribute == "STAGE" or name == "report"
]


def printed(capsys, *words):
    main([*words])
    return capsys.readouterr().out


@pytest.fixture
def tools(tmp_path):
    """Commands that stand in for Slurm and accelerate: they write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    note = f"import json, sys; open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv) + chr(10))"
    scripts = {
        "accelerate": f"#!/usr/bin/env python3\n{note}\n",
        "srun": '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n',
        "scontrol": "#!/bin/bash\necho first\necho second\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return tmp_path


def called(tools, command, *arguments):
    """The words that `accelerate` was called with."""
    env = environment(PATH=f"{tools / 'bin'}:/usr/local/bin:/usr/bin:/bin", SLURM_JOB_NODELIST="x", SLURM_JOB_ID="7")
    env |= {"JOB_COMPLETION_INDEX": "0"}
    done = subprocess.run([command, *arguments], env=env, cwd=tools, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = (tools / "calls").read_text().splitlines()
    return json.loads(line)[1:]


@pytest.mark.parametrize("zero", ["0", "3"])
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_odd_words_reach_the_stage_as_they_are(capsys, tools, nodes, zero):
    given = ["ppo", "--nodes", nodes, "--zero", zero]
    local = printed(capsys, *given, "--", *ODD)
    first = local if nodes == "1" else local.splitlines()[1]
    assert called(tools, "bash", "-c", first)[-len(ODD) :] == ODD
    (tools / "calls").unlink()

    (tools / "job.sbatch").write_text(printed(capsys, *given, "--on", "slurm", "--", *ODD))
    words = called(tools, "bash", "job.sbatch")
    assert words[-len(ODD) - 2 :] == ["-m", "alignment.ppo", *ODD]
    assert nodes == "1" or words[words.index("--main_process_ip") + 1] == "first"
    (tools / "calls").unlink()

    text = printed(capsys, *given, "--on", "kubernetes", "--image", "a: b #c", "--volume", "no", "--", *ODD)
    pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = [word.replace("$$(", "$(") for word in container["command"]]  # as Kubernetes does
    assert called(tools, *command)[-len(ODD) - 2 :] == ["-m", "alignment.ppo", *ODD]
    assert container["image"] == "a: b #c" and pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "no"
    seconds = {e["name"]: e["value"] for e in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(seconds) < pod["terminationGracePeriodSeconds"]


def test_a_script_can_be_written_to_a_file(capsys, tmp_path):
    path = tmp_path / "new" / "job.sbatch"
    assert printed(capsys, "sft", "--on", "slurm", "--write", str(path), "--", "--config", "x.yaml") == f"{path}\n"
    assert path.read_text().startswith("#!/bin/bash\n#SBATCH --job-name=alignkit\n") and path.read_text()[-2:] == "E\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--config", "x.yaml"], "no option '--config'.*options of ppo itself come after ` -- `"),
        (["--on", "slurm", "ppo"], "'--on': name the stage first"),
        (["ppo", "--on", "slurm"], "no options for ppo; give them after ` -- `"),
        (["run", "--", "x"], "'run' is not a stage"),
        (["ppo", "--job_name", "-a", "--", "x"], "job_name: '-a'"),
        (["ppo", "--job_name", "größe", "--", "x"], "job_name: 'größe'"),
        (["ppo", "--job_name", "1e3", "--", "x"], "job_name: '1e3'"),
        (["ppo", "--job_name", "a" * 41, "--", "x"], "give up to 40"),
        (["ppo", "--port", "70000", "--", "x"], "port: 70000 is outside"),
        (["ppo", "--", "--x", "a\nb"], "an option holds a line break"),
    ],
)
def test_faults(words, message):
    with pytest.raises(UserError, match=message):
        main(words)


def test_help_wherever_it_is_asked_for(capsys):
    assert "--processes_per_node" in printed(capsys, "ppo", "--on", "slurm", "--help")
    assert "--help" in printed(capsys, "ppo", "--", "--help")


@pytest.mark.parametrize(("module", "name"), STAGES, ids=[name for _, name in STAGES])
def test_every_stage_is_a_program(module, name):
    """`-m MODULE`, as launchers start it: a module without these lines does nothing, successfully."""
    path = Path(find_spec(module).origin)
    tree = ast.parse((path.with_name("__main__.py") if path.name == "__init__.py" else path).read_text())
    assert f"run_module('{module}'" in ast.unparse(tree.body[-1])
