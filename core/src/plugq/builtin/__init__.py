"""The plugins that come with plugq, registered by entry points as anyone's are."""
