from nanov2_order.taskset import WorldTaskset

__all__ = ["WorldTaskset"]
