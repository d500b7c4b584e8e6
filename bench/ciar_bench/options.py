"""Options that several commands have."""

from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option(help="A model folder or an embedded model.")]
PromptSizeOption = Annotated[
    str, typer.Option(help="The size whose nouns and places make the prompts.")
]
