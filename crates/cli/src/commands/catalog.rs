//! `tram catalog`: the instance types of the server, those with GPUs among them.

use serde_json::Value;

use crate::{
    error::Error,
    session::Session,
    view::{list, number, text},
};

/// Types of a page: more than any server has.
const TYPES_MAX: &str = "100";

pub(crate) async fn run(session: Session) -> Result<(), Error> {
    let client = session.client()?;
    let reply = client
        .get("/v1/catalog/instances", &[("limit", TYPES_MAX)])
        .await?;
    session.printer.list(
        list(&reply, "instances"),
        "instances",
        &["ID", "CPU", "MEMORY", "DISK", "GPU", "STATUS"],
        |kind| {
            let shares = kind
                .get("vcpu_shares")
                .and_then(Value::as_f64)
                .unwrap_or_default();
            vec![
                text(kind, "id").to_owned(),
                shares.to_string(),
                text(kind, "memory").to_owned(),
                text(kind, "disk").to_owned(),
                gpu(kind),
                text(kind, "status").to_ascii_lowercase(),
            ]
        },
    )
}

/// `2 × L4, 24GB each`, `L4, 6GB`, or `-`.
fn gpu(kind: &Value) -> String {
    let Some(gpu) = kind.get("gpu").filter(|gpu| gpu.is_object()) else {
        return "-".to_owned();
    };
    let (name, memory, count) = (text(gpu, "name"), text(gpu, "memory"), number(gpu, "count"));
    let several = count > 1;
    let mut shown = if several {
        format!("{count} × {name}")
    } else {
        name.to_owned()
    };
    if !memory.is_empty() {
        shown.push_str(&format!(", {memory}{}", if several { " each" } else { "" }));
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gpus_are_told_in_a_word() {
        let shown = |count: i64, memory: &str| {
            gpu(&json!({"gpu": {"count": count, "name": "L4", "memory": memory, "brand": "NVIDIA"}}))
        };
        assert_eq!(shown(1, "24GB"), "L4, 24GB");
        assert_eq!(shown(2, "24GB"), "2 × L4, 24GB each");
        assert_eq!(shown(1, ""), "L4");
        assert_eq!(gpu(&json!({"gpu": null})), "-");
    }
}
