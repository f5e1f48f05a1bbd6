"""Serializers: values of libraries, and of users' own classes, as bytes and back. One module per library.

None of them uses pickle but the one that says so, and none imports a library before there is a value of it.
"""
