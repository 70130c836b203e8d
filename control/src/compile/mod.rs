//! (Desired, Observed) -> what each plane must do. Pure, and only for what a change touched.

use std::sync::Arc;

/// The planes' Inputs as last compiled. Cloning is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub l4: Arc<tidegate_l4::Input>,
    pub l7: Arc<tidegate_l7::Input>,
    pub dns: Arc<tidegate_dns::Input>,
}
