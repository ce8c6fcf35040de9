//! Endpoints of the contract without a part of the platform behind them: those to come answer 501 and say so, those
//! of a business that sells a cloud answer what makes clients go on.

use http::Method;

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::Page,
    wire::account::{HasUnpaidInvoicesReply, ListPaymentMethodsReply},
};

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;
const PATCH: Method = Method::PATCH;
const DELETE: Method = Method::DELETE;

const INSTANCE_SNAPSHOTS: &str = "the history of instance snapshots is not kept on this installation yet";
const ARCHIVES: &str = "building from an uploaded archive is not available on this installation yet: build an image and deploy it";
const GIT: &str = "git repositories are not connected to this installation yet: build an image and deploy it";
const INVITATIONS: &str =
    "invitations are not available on this installation yet: give people an API token (POST /v1/credentials)";
const USERS: &str =
    "users with passwords are not available on this installation yet: use API tokens (POST /v1/credentials)";
const ORGANIZATIONS: &str =
    "organizations are made and removed by the operator of this installation, on its command line";
const PROVISIONING: &str =
    "builds are not available on this installation yet, so nothing reports their progress";
const SEARCH: &str = "search is not available on this installation yet: list objects by name instead";

/// What the contract has and this installation cannot do yet.
const MISSING: &[(Method, &str, &str, &str)] = &[
    (POST, "/v1/archives", "CreateArchive", ARCHIVES),
    (
        GET,
        "/v1/instance_snapshot_events",
        "ListInstanceSnapshotEvents",
        INSTANCE_SNAPSHOTS,
    ),
    (GET, "/v1/git/branches", "ListBranches", GIT),
    (GET, "/v1/git/repositories", "ListRepositories", GIT),
    (
        POST,
        "/v1/git/sync/organization/{organization_id}",
        "ResyncOrganization",
        GIT,
    ),
    (GET, "/v1/github/installation", "GetGithubInstallation", GIT),
    (POST, "/v1/github/installation", "GithubInstallation", GIT),
    (GET, "/v1/search", "Search", SEARCH),
    (
        POST,
        "/v1/provisioning/{deployment_id}/status/{stage}/{attempt}",
        "CreateStageAttempt",
        PROVISIONING,
    ),
    (
        PATCH,
        "/v1/provisioning/{deployment_id}/status/{stage}/{attempt}",
        "DeclareStageProgress",
        PROVISIONING,
    ),
    (
        PATCH,
        "/v1/provisioning/{deployment_id}/status/{stage}/{attempt}/{step}",
        "DeclareStepProgress",
        PROVISIONING,
    ),
    (
        GET,
        "/v1/organization_invitations",
        "ListOrganizationInvitations",
        INVITATIONS,
    ),
    (
        POST,
        "/v1/organization_invitations",
        "CreateOrganizationInvitation",
        INVITATIONS,
    ),
    (
        GET,
        "/v1/organization_invitations/{id}",
        "GetOrganizationInvitation",
        INVITATIONS,
    ),
    (
        DELETE,
        "/v1/organization_invitations/{id}",
        "DeleteOrganizationInvitation",
        INVITATIONS,
    ),
    (
        POST,
        "/v1/organization_invitations/{id}/resend",
        "ResendOrganizationInvitation",
        INVITATIONS,
    ),
    (
        GET,
        "/v1/account/organization_invitations",
        "ListUserOrganizationInvitations",
        INVITATIONS,
    ),
    (
        GET,
        "/v1/account/organization_invitations/{id}",
        "GetUserOrganizationInvitation",
        INVITATIONS,
    ),
    (
        POST,
        "/v1/account/organization_invitations/{id}/accept",
        "AcceptOrganizationInvitation",
        INVITATIONS,
    ),
    (
        POST,
        "/v1/account/organization_invitations/{id}/decline",
        "DeclineOrganizationInvitation",
        INVITATIONS,
    ),
    (
        DELETE,
        "/v1/organization_members/{id}",
        "RemoveOrganizationMember",
        USERS,
    ),
    (POST, "/v1/organizations", "CreateOrganization", ORGANIZATIONS),
    (
        DELETE,
        "/v1/organizations/{id}",
        "DeleteOrganization",
        ORGANIZATIONS,
    ),
    (POST, "/v1/account/login", "Login", USERS),
    (POST, "/v1/account/signup", "Signup", USERS),
    (POST, "/v1/account/reset_password", "ResetPassword", USERS),
    (POST, "/v1/account/update_password", "UpdatePassword", USERS),
    (
        POST,
        "/v1/account/resend_validation",
        "ResendEmailValidation",
        USERS,
    ),
    (POST, "/v1/account/validate/{id}", "Validate", USERS),
    (PUT, "/v1/account/profile", "UpdateUser", USERS),
    (PATCH, "/v1/account/profile", "UpdateUser2", USERS),
    (PUT, "/v2/account/profile", "UpdateUserV2", USERS),
    (PATCH, "/v2/account/profile", "UpdateUserV22", USERS),
    (DELETE, "/v1/users/{id}", "DeleteUser", USERS),
    (DELETE, "/v2/users/{id}", "DeleteUserV2", USERS),
];

const BILLING: &str = "billing";
const BUDGET: &str = "budget";
const COUPON: &str = "coupon";
const PAYMENT_METHOD: &str = "payment method";
const IDENTITY_CHECK: &str = "check of identity";
const FORUM: &str = "forum or support chat";
const SIGN_IN: &str = "sign-in with another service";
const PLAN: &str = "plan or suspension of an organization";

/// What only a business has that sells a cloud.
const ABSENT: &[(Method, &str, &str, &str)] = &[
    (GET, "/v1/billing/manage", "Manage", BILLING),
    (GET, "/v1/billing/next_invoice", "NextInvoice", BILLING),
    (GET, "/v1/subscriptions/{id}", "GetSubscription", BILLING),
    (GET, "/v1/coupons/{code}", "CheckCoupon", COUPON),
    (POST, "/v1/coupons", "RedeemCoupon", COUPON),
    (
        GET,
        "/v1/organizations/{organization_id}/budget",
        "GetBudget",
        BUDGET,
    ),
    (
        POST,
        "/v1/organizations/{organization_id}/budget",
        "CreateBudget",
        BUDGET,
    ),
    (
        PUT,
        "/v1/organizations/{organization_id}/budget",
        "UpdateBudget",
        BUDGET,
    ),
    (
        DELETE,
        "/v1/organizations/{organization_id}/budget",
        "DeleteBudget",
        BUDGET,
    ),
    (
        POST,
        "/v1/payment_methods",
        "CreatePaymentAuthorization",
        PAYMENT_METHOD,
    ),
    (
        GET,
        "/v1/payment_methods/{id}",
        "GetPaymentMethod",
        PAYMENT_METHOD,
    ),
    (
        DELETE,
        "/v1/payment_methods/{id}",
        "DeletePaymentMethod",
        PAYMENT_METHOD,
    ),
    (
        POST,
        "/v1/payment_methods/{id}/confirm",
        "ConfirmPaymentAuthorization",
        PAYMENT_METHOD,
    ),
    (GET, "/v1/account/idenfy", "GetIdenfyToken", IDENTITY_CHECK),
    (
        POST,
        "/v1/account/idenfy",
        "ClearIdenfyVerificationResult",
        IDENTITY_CHECK,
    ),
    (GET, "/v1/account/oauth", "GetOAuthOptions", SIGN_IN),
    (POST, "/v1/account/oauth", "OAuthCallback", SIGN_IN),
    (POST, "/v1/account/invite", "CreateInvite", SIGN_IN),
    (
        POST,
        "/v1/organization_confirmations/{id}",
        "ConfirmOrganizationAction",
        PLAN,
    ),
    (
        POST,
        "/v1/organizations/{id}/deactivate",
        "DeactivateOrganization",
        PLAN,
    ),
    (
        POST,
        "/v1/organizations/{id}/reactivate",
        "ReactivateOrganization",
        PLAN,
    ),
    (POST, "/v1/quotas/capacity", "ReviewOrganizationCapacity", PLAN),
    (GET, "/v1/intercom/profile", "GetIntercomProfile", FORUM),
    (POST, "/v1/sso/canny", "CannyAuth", FORUM),
    (POST, "/v1/sso/discourse", "DiscourseAuth", FORUM),
];

crate::query! {
    /// Which payment methods, of which there are none.
    struct PaymentMethods {
        page: Page,
        statuses: Vec<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut all = vec![
        get(
            "/v1/billing/has_unpaid_invoices",
            "HasUnpaidInvoices",
            has_unpaid_invoices,
        ),
        get("/v1/payment_methods", "ListPaymentMethods", list_payment_methods),
    ];
    all.extend(
        MISSING
            .iter()
            .map(|(method, path, operation, why)| Endpoint::missing(method.clone(), path, operation, why)),
    );
    all.extend(
        ABSENT
            .iter()
            .map(|(method, path, operation, what)| Endpoint::absent(method.clone(), path, operation, what)),
    );
    all
}

async fn has_unpaid_invoices(_: Call) -> Result<HasUnpaidInvoicesReply, Error> {
    Ok(HasUnpaidInvoicesReply {
        has_unpaid_invoices: false,
    })
}

async fn list_payment_methods(call: Call<PaymentMethods>) -> Result<ListPaymentMethodsReply, Error> {
    let Page { limit, offset } = call.query.page;
    Ok(ListPaymentMethodsReply {
        payment_methods: Vec::new(),
        limit,
        offset,
        count: 0,
    })
}
