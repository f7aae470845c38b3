"""`pit recipes`: lists the packaged recipes and prints one.

\b
Examples:
  pit recipes
  pit recipes show quickstart
  pit recipes show quickstart > mine.yaml
"""

import click

from pitlm.io.visible import echo


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the packaged recipes, or print one as a start for your own."""
    if ctx.invoked_subcommand is not None:
        return
    from pitlm.core.packaged_recipes import find_recipe, recipe_names

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        about = find_recipe(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        echo(f"{name:{width}}  {about}")


@recipes.command(epilog="Example: pit recipes show quickstart > mine.yaml")
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME as it is, comments and all."""
    from pitlm.core.errors import loading
    from pitlm.core.packaged_recipes import find_recipe

    with loading(name, "recipe"):
        text = find_recipe(name).read_text(encoding="utf-8")
    echo(text, nl=False)
