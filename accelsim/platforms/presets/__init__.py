"""Named platforms as files; every number has its source beside it."""
