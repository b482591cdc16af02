pub(super) use super::reference::*;
