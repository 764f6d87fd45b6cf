"""The keys of a handoff's measurement: `key:00000000` and so on, the same on both sides."""


def key_of(number: int) -> str:
    return f"key:{number:08}"


KEY_BYTES = len(key_of(0))
