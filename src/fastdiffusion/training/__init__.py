"""One trainer for every kind of net (``trainer``); a ``task`` says what differs between them."""
