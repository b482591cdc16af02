//! Tokens grouped by expert, so that each expert's weights are read once.

use crate::Routing;

/// The tokens of one expert.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    /// The expert.
    pub(super) expert: usize,
    /// Tokens that chose it, ascending, each with its weight.
    pub(super) members: Vec<(usize, f32)>,
}

/// Groups in ascending order of expert id, experts without tokens left out, ids outside
/// `0..num_experts` skipped. Reads the routing to the host.
pub(super) fn group_by_expert(routing: &Routing, num_experts: usize) -> Vec<Group> {
    let [_, top_k] = routing.ids.dims();
    let ids = routing
        .ids
        .try_to_vec_as::<i32>()
        .expect("ids read back as i32");
    let weights = routing
        .weights
        .try_to_vec_as::<f32>()
        .expect("weights read back as f32");
    let mut groups: Vec<Group> = (0..num_experts)
        .map(|expert| Group {
            expert,
            members: Vec::new(),
        })
        .collect();
    for (index, (&id, &weight)) in ids.iter().zip(&weights).enumerate() {
        let group = usize::try_from(id).ok().and_then(|id| groups.get_mut(id));
        if let Some(group) = group {
            group.members.push((index / top_k, weight));
        }
    }
    groups.retain(|group| !group.members.is_empty());
    groups
}
