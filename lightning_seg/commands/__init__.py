"""The command line: parser, messages, and one file for each verb that is not Lightning's."""
