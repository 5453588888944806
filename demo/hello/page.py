"""What the page says."""

import html

GREETING = "Hello"
COLOUR = "#2b7a4b"


def render(greeted, release, commit):
    """The whole page. Everything that comes from outside is escaped."""
    greeted, release, commit = (html.escape(text) for text in (greeted, release, commit))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{GREETING}, {greeted}!</title>
<style>
  body {{ background: {COLOUR}; color: white; font: 1.2rem system-ui, sans-serif; margin: 0;
         min-height: 100vh; display: grid; place-content: center; text-align: center }}
  h1 {{ font-size: clamp(2.5rem, 9vw, 6rem); margin: 0 }}
  p {{ opacity: .85 }}
</style>
<h1>{GREETING}, {greeted}!</h1>
<p>release {release} of commit {commit}</p>
</html>
"""
