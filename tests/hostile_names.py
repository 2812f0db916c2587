"""Names of classes and files that do harm where they are not escaped."""

HOSTILE_NAMES = (
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "-1+1",
    "+1",
    "a;=1+1;b",
    "'quoted'",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "[x](javascript:alert(1))",
    "![x](http://host/x.png)",
    "https://host.org/x www.host.org me@host.org",
    "`a` ``b`` *c* _d_ ~~e~~ # f",
    "a | b \\| c",
    "line\nbreak\r\n",
    "\x1b]0;x\x07\x1b[2J",
    "$(touch x) `touch x` ; touch x",
    r"$\frac{1}{$",
    "\u202egnp.exe",
    ' leading, "quotes" and trailing ',
)
