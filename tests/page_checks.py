"""Checks for every page of pitlm: texts that try to become markup, and a measure of contrast."""

HOSTILE = [
    "<script>alert('script')</script>",
    "<img src=x onerror=\"alert('image')\">",
    "<svg onload=alert('svg')><a href=\"javascript:alert('link')\">click me</a>",
    "</p></section><iframe srcdoc=\"<script>alert('frame')</script>\"></iframe>",
    "<style>* { display: none }</style><link rel=stylesheet href=//evil.example/x.css>",
    "\u202e<b>desrever</b> \u2066\u2067isolated, never closed",
    "{{ 7 * 7 }}${alert('template')}<!-- \u0000 \u2028 -->",
    "<form action=//evil.example><button autofocus onfocus=alert('focus')>B is better</button></form>",
]

# The contrast ratio of an element's text to its background (WCAG 2).
CONTRAST = """node => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (text) => rgb(text).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = node;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
