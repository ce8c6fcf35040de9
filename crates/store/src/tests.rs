//! The suite: every case runs on both databases, so that neither grows a behaviour of its own.
//!
//! On SQLite each case is a test. On PostgreSQL all cases share one cluster, which takes longer to start than any
//! case takes to run; the last case that was announced is the one that failed.

mod cluster;
mod compute;
mod controlling;
mod durability;
mod edge;
mod files;
mod fixture;
mod past;
mod pools;
mod schema;
mod snapshots;
mod tenants;
mod tls;
mod usages;

macro_rules! cases {
    ($($module:ident::$case:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $case() {
                    let fixture = super::fixture::Fixture::sqlite().await;
                    super::$module::$case(&fixture).await;
                    fixture.store.close().await;
                }
            )+
        }

        #[tokio::test]
        async fn postgres() {
            let Some(cluster) = cluster::Cluster::start().await else {
                return;
            };
            $(
                println!(concat!("case ", stringify!($module), "::", stringify!($case)));
                let url = cluster.new_database(stringify!($case)).await;
                let fixture = fixture::Fixture::postgres(url).await;
                Box::pin($module::$case(&fixture)).await;
                fixture.store.close().await;
            )+
            cluster.stop().await;
        }
    };
}

cases! {
    snapshots::a_snapshot_and_its_size_go_together,
    tenants::names_are_unique_and_pages_are_stable,
    tenants::a_token_is_found_until_it_expires_or_is_revoked,
    tenants::nothing_of_another_organization_is_found,
    tenants::settings_are_kept,
    compute::an_app_comes_with_its_domain_or_not_at_all,
    compute::a_service_comes_with_its_first_deployment,
    compute::deployments_count_up_even_when_the_clock_jumps_back,
    compute::writers_that_race_get_versions_of_their_own,
    compute::one_of_many_gets_the_name,
    compute::intents_show_at_once_and_refuse_what_is_too_late,
    compute::a_service_expires_unless_its_owner_wants_something_else,
    compute::lists_filter,
    compute::a_composition_is_whole,
    compute::the_newest_definition_decides_what_is_claimed,
    compute::a_paused_app_resumes_with_its_services,
    compute::a_paused_app_runs_again_with_the_first_service_that_does,
    compute::ports_and_services_are_taken_in_one_order,
    edge::public_ports_are_unique_and_run_out,
    edge::public_ports_are_unique_under_a_race,
    edge::call_patterns_are_kept_and_go_with_their_service,
    edge::domains_are_unique_everywhere,
    edge::what_a_secret_is_bound_to_comes_with_its_value,
    edge::secrets_are_encrypted_scoped_and_rotated,
    edge::a_ciphertext_cannot_be_moved,
    controlling::a_state_holds_what_may_still_change,
    controlling::a_stashed_deployment_does_not_hide_the_one_before,
    controlling::the_newest_ends_of_every_replica_are_read,
    controlling::models_are_counted_by_deployment_and_status,
    controlling::a_batch_is_applied_whole_or_not_at_all,
    controlling::a_sweep_sees_what_is_not_settled,
    controlling::a_service_goes_when_its_instances_are_forgotten,
    controlling::routes_of_one_are_the_routes_of_all,
    controlling::one_process_leads_and_a_former_leader_is_refused,
    controlling::changes_reach_other_replicas,
    controlling::changes_are_told_after_the_commit,
    pools::a_claim_takes_a_ready_member_once,
    pools::claims_that_race_never_share_a_member,
    pools::a_pool_takes_members_of_its_generation_and_size,
    pools::pools_of_an_organization_share_a_bound,
    pools::pools_made_at_once_never_pass_the_bound,
    past::counts_are_of_one_organization,
    past::events_keep_their_order,
    past::old_things_are_pruned_and_serving_ones_are_not,
    snapshots::what_was_given_up_is_listed_and_what_is_damaged_is_not,
    usages::usage_is_told_apart,
    usages::a_position_is_passed_once,
    usages::a_reader_that_is_cut_off_counts_once,
    usages::limits_are_kept_and_go_with_their_subject,
    schema::records_match_their_tables,
    schema::an_upgraded_database_equals_a_fresh_one,
    schema::a_newer_database_is_refused,
}
