//! Organizations and their members.

use std::collections::BTreeMap;

use tram_types::Timestamp;

tram_types::wire_enum! {
    /// What an organization pays for.
    #[derive(Default)]
    pub enum Plan {
        Hobby = "hobby",
        Starter = "starter",
        Startup = "startup",
        Business = "business",
        #[default]
        Enterprise = "enterprise",
        Internal = "internal",
        Hobby23 = "hobby23",
        NoPlan = "no_plan",
        Pro = "pro",
        Scale = "scale",
        PartnerCsp = "partner_csp",
        PartnerCspUnit = "partner_csp_unit",
    }

    /// Whether an organization may work.
    #[derive(Default)]
    pub enum OrganizationStatus as "Organization.Status" {
        Warning = "WARNING",
        Locked = "LOCKED",
        #[default]
        Active = "ACTIVE",
        Deactivating = "DEACTIVATING",
        Deactivated = "DEACTIVATED",
        Deleting = "DELETING",
        Deleted = "DELETED",
    }

    /// Why.
    #[derive(Default)]
    pub enum OrganizationDetailedStatus {
        New = "NEW",
        EmailNotValidated = "EMAIL_NOT_VALIDATED",
        BillingInfoMissing = "BILLING_INFO_MISSING",
        Locked = "LOCKED",
        PaymentFailure = "PAYMENT_FAILURE",
        #[default]
        Valid = "VALID",
        PendingVerification = "PENDING_VERIFICATION",
        VerificationFailed = "VERIFICATION_FAILED",
        ReviewingAccount = "REVIEWING_ACCOUNT",
        PlanUpgradeRequired = "PLAN_UPGRADE_REQUIRED",
    }

    /// Why an organization stopped.
    #[derive(Default)]
    pub enum OrganizationDeactivationReason as "Organization.DeactivationReason" {
        #[default]
        Invalid = "INVALID",
        RequestedByOwner = "REQUESTED_BY_OWNER",
        SubscriptionTermination = "SUBSCRIPTION_TERMINATION",
        LockedByAdmin = "LOCKED_BY_ADMIN",
        VerificationFailed = "VERIFICATION_FAILED",
        TrialDidNotConvert = "TRIAL_DID_NOT_CONVERT",
    }

    /// Whether a member is one.
    #[derive(Default)]
    pub enum OrganizationMemberStatus as "OrganizationMember.Status" {
        #[default]
        Invalid = "INVALID",
        Active = "ACTIVE",
        Deleted = "DELETED",
    }

    /// What a member may do.
    #[derive(Default)]
    pub enum UserRoleRole as "UserRole.Role" {
        #[default]
        Invalid = "INVALID",
        Owner = "OWNER",
    }
}

tram_types::message! {
    /// A tenant.
    pub struct Organization {
        pub id: String,
        pub external_id: String,
        pub provisioning: bool,
        pub address1: String,
        pub address2: String,
        pub city: String,
        pub postal_code: String,
        pub state: String,
        pub country: String,
        pub company: bool,
        pub vat_number: String,
        pub billing_name: String,
        pub billing_email: String,
        pub name: String,
        pub plan: Plan,
        pub plan_updated_at: Option<Timestamp>,
        pub has_payment_method: bool,
        pub subscription_id: String,
        pub current_subscription_id: String,
        pub latest_subscription_id: String,
        pub signup_qualification: BTreeMap<String, serde_json::Value>,
        pub status: OrganizationStatus,
        pub status_message: OrganizationDetailedStatus,
        pub deactivation_reason: OrganizationDeactivationReason,
        pub verified: bool,
        pub qualifies_for_hobby23: bool,
        pub reprocess_after: Option<Timestamp>,
        pub trialing: bool,
        pub trial_starts_at: Option<Timestamp>,
        pub trial_ends_at: Option<Timestamp>,
        pub email_domain_allowlist: Vec<String>,
        pub default_project_id: String,
    }

    /// The answer of `get organization`.
    pub struct GetOrganizationReply {
        pub organization: Option<Organization>,
    }

    /// The answer of `update organization`.
    pub struct UpdateOrganizationReply {
        pub organization: Option<Organization>,
    }

    /// A new name.
    pub struct UpdateOrganizationNameRequest {
        pub name: String,
    }

    /// The answer of `update organization name`.
    pub struct UpdateOrganizationNameReply {
        pub organization: Option<Organization>,
    }

    /// A new default project.
    pub struct UpdateOrganizationDefaultProjectRequest {
        pub default_project_id: String,
    }

    /// The answer of `update organization default project`.
    pub struct UpdateOrganizationDefaultProjectReply {
        pub organization: Option<Organization>,
    }

    /// A user of an organization.
    pub struct OrganizationMember {
        pub id: String,
        pub organization_id: String,
        pub user_id: String,
        pub external_id: String,
        pub joined_at: Option<Timestamp>,
        pub role: UserRoleRole,
        pub status: OrganizationMemberStatus,
        pub user: Option<PublicUser>,
        pub organization: Option<PublicOrganization>,
    }

    /// A user as others see them.
    pub struct PublicUser {
        pub id: String,
        pub email: String,
        pub name: String,
        pub avatar_url: String,
        pub github_id: String,
        pub github_user: String,
    }

    /// An organization as others see it.
    pub struct PublicOrganization {
        pub id: String,
        pub name: String,
        pub plan: Plan,
        pub status: OrganizationStatus,
        pub external_id: String,
    }

    /// The answer of `list organization members`.
    pub struct ListOrganizationMembersReply {
        pub members: Vec<OrganizationMember>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// Another plan, of which there is one here.
    pub struct UpdateOrganizationPlanRequest {
        pub plan: Plan,
        pub coupon_code: String,
    }

    /// The answer of `update organization plan`.
    pub struct UpdateOrganizationPlanReply {
        pub organization: Option<Organization>,
    }

    /// What somebody signs up for.
    pub struct UpsertSignupQualificationRequest {
        pub signup_qualification: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `upsert signup qualification`.
    pub struct UpsertSignupQualificationReply {
        pub organization: Option<Organization>,
    }
}
