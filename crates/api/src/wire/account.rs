//! Users, their sessions and settings.

use tram_types::Timestamp;

use super::organization::Organization;

tram_types::wire_enum! {
    /// Marks on a user.
    #[derive(Default)]
    pub enum UserFlags {
        #[default]
        Admin = "ADMIN",
        Test = "TEST",
        Restricted = "RESTRICTED",
        Active = "ACTIVE",
        Beta = "BETA",
        MaxOrganizations25 = "MAX_ORGANIZATIONS_25",
        MaxOrganizations100 = "MAX_ORGANIZATIONS_100",
        MaxOrganizations1000 = "MAX_ORGANIZATIONS_1000",
        MaxOrganizations10000 = "MAX_ORGANIZATIONS_10000",
        MaxOrganizations100000 = "MAX_ORGANIZATIONS_100000",
        MaxOrganizations1000000 = "MAX_ORGANIZATIONS_1000000",
        PartnerCsp = "PARTNER_CSP",
        IgnoreOrganizationNameReservationRuleNeonPrefix = "IGNORE_ORGANIZATION_NAME_RESERVATION_RULE_NEON_PREFIX",
    }

    /// How a user logs in.
    #[derive(Default)]
    pub enum LoginMethodReplyMethod as "LoginMethodReply.Method" {
        #[default]
        Koyeb = "KOYEB",
        Workos = "WORKOS",
    }
}

tram_types::message! {
    /// A person.
    pub struct User {
        pub id: String,
        pub email: String,
        pub avatar_url: String,
        pub two_factor_authentication: bool,
        pub last_login: Option<Timestamp>,
        pub last_login_ip: String,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub newsletter_subscribed: bool,
        pub github_id: String,
        pub github_user: String,
        pub flags: Vec<UserFlags>,
        pub name: String,
        pub email_validated: bool,
        pub trialed: bool,
    }

    /// The answer of `user`.
    pub struct UserReply {
        pub user: Option<User>,
    }

    /// A user's wishes.
    pub struct UserSettings {
        pub id: String,
        pub user_id: String,
        pub failed_deployment_email_notification: bool,
    }

    /// The answer of `get user settings`.
    pub struct GetUserSettingsReply {
        pub settings: Option<UserSettings>,
    }

    /// What to change of a user's wishes.
    pub struct UpdateUserSettingsRequest {
        pub failed_deployment_email_notification: Option<bool>,
    }

    /// The answer of `update user settings`.
    pub struct UpdateUserSettingsReply {
        pub settings: Option<UserSettings>,
    }

    /// The answer of `list user organizations`.
    pub struct ListUserOrganizationsReply {
        pub organizations: Vec<Organization>,
        pub limit: i64,
        pub offset: i64,
        pub has_next: bool,
    }

    /// A session; its id is the bearer token.
    pub struct Token {
        pub id: String,
        pub user_id: String,
        pub organization_id: String,
        pub expires_at: Option<Timestamp>,
    }

    /// The answer of `login`.
    pub struct LoginReply {
        pub token: Option<Token>,
    }

    /// The empty answer of `logout`.
    pub struct LogoutReply {}

    /// The answer of `login method`.
    pub struct LoginMethodReply {
        pub method: LoginMethodReplyMethod,
    }

    /// The answer of `has unpaid invoices`.
    pub struct HasUnpaidInvoicesReply {
        pub has_unpaid_invoices: bool,
    }

    /// How long an access token is to work.
    pub struct CreateAccessTokenRequest {
        /// Seconds, such as `3600s`.
        pub validity: String,
    }

    /// The answer of `create access token`.
    pub struct CreateAccessTokenReply {
        pub token: String,
    }

    /// The answer of `list payment methods`, of which there are none here.
    pub struct ListPaymentMethodsReply {
        pub payment_methods: Vec<serde_json::Value>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }
}
