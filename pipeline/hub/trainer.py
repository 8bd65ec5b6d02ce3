"""`push_to_hub: true` while training: the same files, checks and promises as `make push`.

The Trainer's own way pushes all of the output folder: config.yaml with local paths, samples of the data, and
training_args.bin, a pickle that holds the access token when one was given; and it overwrites whatever is there.
"""

from pathlib import Path

from transformers.trainer_utils import HubStrategy

from pipeline.config import check
from pipeline.errors import UserError
from pipeline.hub.errors import plain_errors
from pipeline.hub.parcel import CARD, MODEL, TOKENIZER, kind_of, parcel
from pipeline.hub.push import check_repo
from pipeline.hub.upload import hub_api, look, not_ours, noted_files, patiently, upload
from pipeline.safety.commands import command
from pipeline.safety.console import say
from pipeline.safety.weights import ADAPTER_WEIGHTS

MADE_BY_A_RUN = (ADAPTER_WEIGHTS, "model.safetensors", CARD, *MODEL, *TOKENIZER)


class PushesResults:
    """Mixed into a Trainer, before its class: what it pushes to the Hub is what `make push` would push.

    hub_strategy: `end` pushes when training is over, `every_save` (the default) with each checkpoint as well.
    `checkpoint` and `all_checkpoints` are refused, because checkpoints are pickles.
    """

    def init_hf_repo(self, token=None, private=None):
        """Makes the repository before training starts, private unless said otherwise, so that errors come early."""
        # not in the settings any more, which the Trainer pickles into each checkpoint
        self._hub_token, self.args.hub_token = token or self.args.hub_token, None
        if not self.is_world_process_zero():
            return
        strategy = HubStrategy(self.args.hub_strategy)
        wants = "end or every_save: checkpoints are pickles, which are never pushed"
        check(strategy in (HubStrategy.END, HubStrategy.EVERY_SAVE), "hub_strategy", strategy.value, wants)
        check(
            self.args.hub_revision in (None, "main"), "hub_revision", self.args.hub_revision, "main, or leave it out"
        )
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        with plain_errors(name, self._hub_token):
            api = hub_api(self._hub_token)
            if "/" not in name:
                name = f"{patiently(api.whoami)['name']}/{name}"
            check_repo("hub_model_id", name)
            wanted = self.args.hub_private_repo if private is None else private
            self._hub_private = wanted is not False
            remote = look(api, name)
            if remote.head is None:
                patiently(lambda: api.create_repo(name, private=self._hub_private, exist_ok=True))
        self.hub_model_id = name
        if remote.head and self._hub_private and not remote.private:
            raise UserError(f"hub_model_id: {name} is public already: set hub_private_repo: false, or name another")
        if theirs := self._theirs(remote):
            raise UserError(
                f"hub_model_id: {name} has {', '.join(theirs)} already, which this run did not push: name another "
                f"repository, or train without push_to_hub and push with {command('push')} --overwrite"
            )

    def _theirs(self, remote) -> list[str]:
        # by name alone: what the files will hold is not known yet
        ours = noted_files(Path(self.args.output_dir), self.hub_model_id)
        return [name for name, oid in remote.files.items() if name in MADE_BY_A_RUN and oid not in ours.get(name, ())]

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Saves the model and pushes it; the other arguments are those of `Trainer`, which it is called with."""
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        self.push_saved(commit_message)

    def push_saved(self, commit_message: str = "End of training", folder: str | Path | None = None) -> None:
        """Pushes what lies in `folder` (default: the output folder), on the main process.

        Raises:
            UserError: when the push fails; what was trained is on disk all the same.
        """
        if not self.is_world_process_zero():
            return
        output, repo = Path(self.args.output_dir), self.hub_model_id
        folder = Path(folder or output)
        packed = parcel(kind_of(folder), folder, repo, note=output)
        if folder != output:
            packed.files.pop(CARD)  # what PEFT puts into a checkpoint has nothing in it; the card comes at the end
        with plain_errors(repo, self._hub_token):
            api = hub_api(self._hub_token)
            remote = look(api, repo)
            if theirs := not_ours(packed, remote):
                raise UserError(f"{repo}: {', '.join(theirs)} was changed by somebody else during training, and stays")
            oid = upload(api, packed, remote, self._hub_private, commit_message)
        say(f"{repo}: {commit_message}, pushed as {oid[:12]}")

    def _push_from_checkpoint(self, checkpoint_folder):
        if HubStrategy(self.args.hub_strategy) == HubStrategy.END:
            return
        try:
            self.push_saved(f"Training in progress, step {self.state.global_step}", checkpoint_folder)
        except UserError as error:
            say(f"not pushed at step {self.state.global_step}, training goes on: {error}")
