from nanov2_order.taskset import OrderTaskset

__all__ = ["OrderTaskset"]
