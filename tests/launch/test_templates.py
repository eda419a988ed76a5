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
    "--trackers",
    "[1, 'b']",
    "--policy",
    "$(id) `id` $((1))",
]
ODD += ["--prompts", "p", "--replay", "", "--critic", "a\\b !# & | ; * ? ~ % größe: -", "--reward=$$"]
STAGES = [
    (module, name) for name, (module, attribute, _) in COMMANDS.items() if attribute == "STAGE" or name == "report"
]


SFT = ["--model", "m", "--data", "d", "--output_dir", "o"]


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
def test_odd_words_reach_the_stage_as_they_are(capsys, tools, nodes, zero, monkeypatch):
    monkeypatch.chdir(tools)
    (tools / "my runs").mkdir()
    (tools / ODD[1]).write_text("updates: 3\nprompts: x\n")
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
    written = path.read_text()
    assert written.startswith("#!/bin/bash\n#SBATCH --job-name=alignkit\n") and written[-2:] == "E\n"
    words = ["sft", "--write", str(path), "--", *SFT]
    with pytest.raises(
        UserError, match=r"^write: .*job.sbatch is there already; name another file, or add --overwrite"
    ):
        main(words)
    with pytest.raises(UserError, match="is a folder; name a file"):
        main(["sft", "--write", str(path.parent), "--overwrite", "true", "--", *SFT])
    assert path.read_text() == written
    main([*words[:3], "--overwrite", "true", *words[3:]])
    assert path.read_text() != written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--config", "x.yaml"], "no option '--config'.*options of ppo itself come after ` -- `"),
        (["--on", "slurm", "ppo"], "'--on': name the stage first"),
        (["ppo", "--on", "slurm"], "no options for ppo; give them after ` -- `"),
        (["ppo", "--on", "slurn"], "on: 'slurn' is not one of .*; did you mean 'slurm'"),
        (["sft", "--", *SFT, "--learning_rat", "3"], "unknown key '--learning_rat'; did you mean 'learning_rate'"),
        (["sft", "--", *SFT, "--batch_size", "0"], "batch_size: 0 is below 1"),
        (["sft", "--", *SFT, "--config", "absent.yaml"], r"absent\.yaml: no such recipe"),
        (["sft", "--on", "slurm", "--", "--config", "/there/x.yaml", "--epochs", "x"], "--epochs: 'x' is not"),
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


@pytest.mark.parametrize(("visible", "count"), [("", 1), ("-1", 1), ("0", 1), ("0,3", 2)])
def test_a_local_job_takes_what_this_machine_has(capsys, monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = printed(capsys, "sft", "--", *SFT).split()
    assert words[words.index("--num_processes") + 1] == str(count) and ("--multi_gpu" in words) == (count > 1)
    assert "--num_processes 8" in printed(capsys, "sft", "--on", "slurm", "--", *SFT)
    assert "--num_processes 4" in printed(capsys, "sft", "--processes_per_node", "4", "--", *SFT)
