"""Personal data: found by offline rules, replaced by typed placeholders. docs/decisions/0010-pii.md
says what each kind covers; a `Detector` may know names of people."""
