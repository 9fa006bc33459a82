"""Run in each of several processes: a module as `python -m` would, which writes down what it ran as.

That is noted while the process group is there: by a job when it has trained, by a command that trains nothing when it
ends the group.
"""

import runpy
import sys

from accelerate import PartialState

from hf_gradkit.cli.job import Job
from launch import report_world


def report_what_runs() -> None:
    train_one, destroy_process_group = Job.train_one, PartialState.destroy_process_group
    trained = []

    def train_and_report(job, *positional):
        trainer = train_one(job, *positional)
        report_world(trainer)
        trained.append(trainer.args.output_dir)
        return trainer

    def report_and_destroy(state, group=None):
        if not trained:
            report_world()
        destroy_process_group(state, group)

    Job.train_one, PartialState.destroy_process_group = train_and_report, report_and_destroy


if __name__ == "__main__":
    report_what_runs()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
