//! Tools that only a provider's own servers can run. Agents offer them with every request, so they
//! are left out and counted; the model is not told of them.

use super::fields::Fields;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Labels, each the beginning of the types that it counts.
pub const KINDS: &[&str] = &[
    "web_search",
    "web_fetch",
    "file_search",
    "tool_search",
    "computer",
    "code_interpreter",
    "code_execution",
    "image_generation",
    "mcp",
    "local_shell",
    "shell",
    "bash",
    "text_editor",
    "apply_patch",
    "memory",
    "namespace",
    OTHER,
];

const OTHER: &str = "other";

/// The label that a tool's type is counted under.
pub fn kind(tool_type: &str) -> &'static str {
    let known = KINDS.iter().find(|kind| tool_type.starts_with(**kind));
    known.copied().unwrap_or(OTHER)
}

/// Counts a tool that is left out. Whose a type is, nobody can know; an empty one is nobody's.
pub fn skip(tool: &Fields<'_>, tool_type: &str, metrics: &Metrics) -> Result<(), ApiError> {
    if tool_type.is_empty() {
        let path = tool.path("type");
        return Err(ApiError::invalid_value(path, "must not be empty"));
    }
    metrics.count_hosted_tool(kind(tool_type));
    Ok(())
}

/// The error for a choice of such a tool.
pub fn chosen(fields: &Fields<'_>, tool: &str) -> ApiError {
    // A type may be megabytes of somebody's mistake; its beginning tells which.
    let tool: String = tool.chars().take(100).collect();
    ApiError::invalid_value(
        fields.path("tool_choice"),
        format!("names {tool:?}, which is no function or custom tool of this request"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few() {
        assert_eq!(kind("web_search_preview_2025_03_11"), "web_search");
        assert_eq!(kind("computer_use_preview"), "computer");
        assert_eq!(kind("bash_20250124"), "bash");
        assert_eq!(kind("from_next_year"), OTHER);
        assert_eq!(kind(""), OTHER);
    }
}
