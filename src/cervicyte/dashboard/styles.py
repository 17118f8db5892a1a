"""How the dashboard looks, and its script: one style sheet and one script, sent with the page."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
CSS = (HERE / "style.css").read_text(encoding="utf-8")
HEAD = (
    '<meta name="color-scheme" content="light dark">\n'
    f"<script>{(HERE / 'script.js').read_text(encoding='utf-8')}</script>"
)

THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="md",
    # System fonts: Gradio's other themes ask Google for theirs.
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(body_text_color_subdued="*neutral_600")  # the theme's own is too pale to read (WCAG AA)
