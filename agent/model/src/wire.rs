//! Wire messages become vocabulary here, once; whatever does not fit is refused with the field and the value.
