"""The behavioural tests of the storage contract, one module a subject.

They are put together by :class:`plugq.testing.StorageContract`.
"""
