"""JavaScript of the tab's events, which the browser runs before or instead of a call of the server (see explain.js)."""

from __future__ import annotations

import json

from text2seg.app.explain.run import BUSY, PATIENCE, QUEUED
from text2seg.app.messages import note

BEGIN = "Choose a tool and an image, then press Run."
ESTIMATES = "Measuring how long this takes …"
SAME = '{ __type__: "update" }'
PRESS = f"""(typed, status) => {{
  text2segBegin(typed, status);
  text2segWaits("{ESTIMATES}", {1000 * PATIENCE});
  const starts = '<p class="numbers" role="status" data-sent>Starting …</p>';
  return [text2segCan(false), text2segCan(true), `<section class="t2s-status running">${{starts}}</section>`, '', ''];
}}"""
ASK = (
    '<div class="t2s"><p class="t2s-alert t2s-plain" data-ask role="alert">Start it now? '
    '<button type="button" data-do="begin-run">Start</button> '
    '<button type="button" data-do="leave-run">Not now</button></p></div>'
)
# The values of a run: the tool and the images that the browser shows, because Gradio may still hold those before,
# whether the visitor has pressed "Start" for this run, and its number.
AGREED = """(tool, files, typed) =>
  [text2segTool(tool), text2segFiles('explain-files', files), typed, text2segAgreed()]"""
NUMBERED = """(tool, image, files, ...given) => [text2segTool(tool), text2segFiles('explain-image', image),
  text2segFiles('explain-files', files), ...given.slice(0, -1), text2segNumber()]"""
# Whether the tab opens with an image of the visitor's own, chosen before a reload.
IS_OTHER = "() => [text2segFiles('explain-image', { example: 0 })?.example !== 0]"
# When the answer whether to ask is there, unless the visitor has given up meanwhile.
BEGIN_UNLESS_ASKED = f"""(asks) => {{
  const same = {SAME};
  if (!text2segGoesOn()) return [same, same, same, same];
  if (asks) return [{json.dumps(ASK)}, "", text2segCan(true), text2segCan(false)];
  text2segWaits("{BUSY}", {1000 * 2 * PATIENCE}, "{QUEUED}");
  text2segPress("#explain-begin");
  return ["", same, same, same];
}}"""
FOCUS_QUESTION = "() => document.querySelector('#explain-question button')?.focus()"
# What is no longer true is cleared in the browser, at once: an answer of the server could come after the next result.
CLEARED = f"""'', '', {json.dumps(note(BEGIN))}, null, {{ __type__: "update", visible: false }}, null"""
CLEAR = f"() => {{ if (text2segRuns()) return Array(6).fill({SAME}); text2segClear(); return [{CLEARED}]; }}"
CHOOSE = f"""(name, typed) => {{
  const run = text2segGivesUp() ? [text2segCan(true), text2segCan(false)] : [{SAME}, {SAME}];
  text2segGiveUp();
  text2segClear();
  const takes = (images) => ({{ __type__: "update", visible: (%s)[name] === images }});
  return [text2segTyped(typed), name, takes("one"), takes("many"), {CLEARED}, ...run];
}}"""
OUTDATED = "(typed, ...said) => text2segOutdated(typed) || said[0] || ''"
# A run that waits for its turn ends here and now, and the result before is back; one that has begun ends at its next
# step.
STOP = f"""() => {{
  const same = {SAME};
  if (text2segGivesUp()) return [text2segCan(false), text2segCan(true), text2segGiveUp() ?? same];
  const said = document.querySelector("#explain-status .numbers");
  if (said) said.textContent = "Stopping …";
  return [text2segCan(false), same, same];
}}"""
NUMBER = "() => [text2segNumber()]"
READY = "() => [text2segCan(true), text2segCan(false)]"
