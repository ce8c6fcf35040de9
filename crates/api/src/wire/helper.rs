//! Small helpers: image verification and the connection test.

tram_types::wire_enum! {
    /// Why an image cannot be used.
    #[derive(Default)]
    pub enum VerifyDockerImageReplyErrCode as "VerifyDockerImageReply.ErrCode" {
        #[default]
        Unknown = "UNKNOWN",
        AuthAccessDenied = "AUTH_ACCESS_DENIED",
        AnonAccessDenied = "ANON_ACCESS_DENIED",
        AuthNotFound = "AUTH_NOT_FOUND",
        AnonNotFound = "ANON_NOT_FOUND",
        RegistryError = "REGISTRY_ERROR",
        Timeout = "TIMEOUT",
        Dns = "DNS",
        Malformed = "MALFORMED",
        InvalidOs = "INVALID_OS",
        InvalidArch = "INVALID_ARCH",
        InvalidScheme = "INVALID_SCHEME",
        Generic = "GENERIC",
    }
}

tram_types::message! {
    /// The answer of `verify docker image`.
    pub struct VerifyDockerImageReply {
        pub success: bool,
        pub reason: String,
        pub code: VerifyDockerImageReplyErrCode,
    }

    /// The empty answer of `ktest test anon`.
    #[schema(as = ktest::TestAnonReply)]
    pub struct TestAnonReply {}

    /// Something to echo.
    #[schema(as = ktest::TestAuthRequest)]
    pub struct TestAuthRequest {
        pub payload: String,
    }

    /// The answer of `ktest test auth`.
    #[schema(as = ktest::TestAuthReply)]
    pub struct TestAuthReply {
        pub payload: String,
        pub user_id: String,
        pub organization_id: String,
        pub workspace_id: String,
    }
}
