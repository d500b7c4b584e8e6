"""Generated from `proto/ciar/v1` by `make proto`; edit the `.proto` files instead."""
