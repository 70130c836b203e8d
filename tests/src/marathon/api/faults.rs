//! `/stand-in/faults`: GET shows what is set, POST changes settings and runs commands, DELETE ends all faults.

use super::{Answer, Call, ok};
use crate::marathon::{
    commands,
    error::ApiError,
    faults::{Faults, Request},
};

pub(super) async fn route(call: &Call) -> Answer {
    let core = &call.core;
    match call.method.as_str() {
        "GET" => {}
        "DELETE" => core.set_faults(Faults::default()),
        "POST" | "PUT" => {
            let request: Request = call.json()?;
            let faults = core.faults().with(request.settings).map_err(|e| {
                ApiError::BadRequest(format!("cannot read the faults: {e}; see GET /stand-in/faults for what there is"))
            })?;
            core.set_faults(faults);
            for command in request.commands {
                commands::run(core, command).await.map_err(ApiError::NotFound)?;
            }
        }
        _ => return Err(ApiError::UnknownUri),
    }
    ok(&core.faults())
}
