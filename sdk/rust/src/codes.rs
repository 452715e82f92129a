//! The error catalogue, from protocol/errors.json: `make reference` draws it anew.

/// A code of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
pub enum Code {
    /// `frame-too-large`
    FrameTooLarge = 1001,
    /// `malformed-cbor`
    MalformedCbor = 1002,
    /// `malformed-message`
    MalformedMessage = 1003,
    /// `unexpected-message`
    UnexpectedMessage = 1004,
    /// `unexpected-descriptors`
    UnexpectedDescriptors = 1005,
    /// `missing-descriptors`
    MissingDescriptors = 1006,
    /// `too-many-descriptors`
    TooManyDescriptors = 1007,
    /// `connection-cut`
    ConnectionCut = 1008,
    /// `version-unsupported`
    VersionUnsupported = 1009,
    /// `handshake-timeout`
    HandshakeTimeout = 1010,
    /// `role-not-accepted`
    RoleNotAccepted = 1011,
    /// `frame-not-sendable`
    FrameNotSendable = 1012,
    /// `descriptors-mismatch`
    DescriptorsMismatch = 1013,
    /// `connection-lost`
    ConnectionLost = 1014,
    /// `frame-timeout`
    FrameTimeout = 1015,
    /// `flow-invalid`
    FlowInvalid = 2001,
    /// `flow-unreadable`
    FlowUnreadable = 2002,
    /// `artifact-missing`
    ArtifactMissing = 2003,
    /// `artifact-kind-unsupported`
    ArtifactKindUnsupported = 2004,
    /// `compile-failed`
    CompileFailed = 2005,
    /// `feature-unsupported`
    FeatureUnsupported = 2006,
    /// `topic-of-no-flow`
    TopicOfNoFlow = 2007,
    /// `flow-needs-processes`
    FlowNeedsProcesses = 2008,
    /// `flow-not-found`
    FlowNotFound = 3001,
    /// `flow-exists`
    FlowExists = 3002,
    /// `flow-failed`
    FlowFailed = 3003,
    /// `flow-not-running`
    FlowNotRunning = 3004,
    /// `node-not-found`
    NodeNotFound = 3005,
    /// `spawn-failed`
    SpawnFailed = 3006,
    /// `worker-exited`
    WorkerExited = 3007,
    /// `worker-not-ready`
    WorkerNotReady = 3008,
    /// `plugin-fault`
    PluginFault = 3009,
    /// `plugin-not-loadable`
    PluginNotLoadable = 3010,
    /// `timed-out`
    TimedOut = 3011,
    /// `cancelled`
    Cancelled = 3012,
    /// `wrong-state`
    WrongState = 3013,
    /// `change-refused`
    ChangeRefused = 3014,
    /// `rollout-under-way`
    RolloutUnderWay = 3015,
    /// `rolled-back`
    RolledBack = 3016,
    /// `revision-not-found`
    RevisionNotFound = 3017,
    /// `code-changed`
    CodeChanged = 3018,
    /// `flow-not-ended`
    FlowNotEnded = 3019,
    /// `run-not-found`
    RunNotFound = 3020,
    /// `attach-token-unknown`
    AttachTokenUnknown = 3021,
    /// `attach-name-unknown`
    AttachNameUnknown = 3022,
    /// `attach-not-awaited`
    AttachNotAwaited = 3023,
    /// `attach-refused`
    AttachRefused = 3024,
    /// `attach-nothing`
    AttachNothing = 3025,
    /// `attach-ended`
    AttachEnded = 3026,
    /// `not-allowed`
    NotAllowed = 4001,
    /// `quota-exceeded`
    QuotaExceeded = 4002,
    /// `user-not-possible`
    UserNotPossible = 4003,
    /// `attach-wrong-user`
    AttachWrongUser = 4004,
    /// `route-detached`
    RouteDetached = 5001,
    /// `descriptor-refused`
    DescriptorRefused = 5002,
    /// `route-unknown`
    RouteUnknown = 5003,
    /// `payload-undecodable`
    PayloadUndecodable = 5004,
    /// `payload-unencodable`
    PayloadUnencodable = 5005,
    /// `out-of-memory`
    OutOfMemory = 5006,
    /// `reattach-refused`
    ReattachRefused = 5007,
    /// `claim-refuted`
    ClaimRefuted = 5008,
    /// `peer-lied`
    PeerLied = 5009,
    /// `accusation-unproven`
    AccusationUnproven = 5010,
    /// `unknown-verb`
    UnknownVerb = 6001,
    /// `bad-argument`
    BadArgument = 6002,
    /// `daemon-unreachable`
    DaemonUnreachable = 6003,
    /// `daemon-already-running`
    DaemonAlreadyRunning = 6004,
    /// `daemon-stopping`
    DaemonStopping = 6005,
    /// `config-invalid`
    ConfigInvalid = 6006,
    /// `internal`
    Internal = 6007,
    /// `launcher-lost`
    LauncherLost = 6008,
    /// `slow-reader`
    SlowReader = 6009,
    /// `socket-unusable`
    SocketUnusable = 6010,
    /// `state-dir-unknown`
    StateDirUnknown = 6011,
    /// `socket-in-use`
    SocketInUse = 6012,
    /// `service-failed`
    ServiceFailed = 6013,
    /// `file-not-ours`
    FileNotOurs = 6014,
    /// `daemon-upgrading`
    DaemonUpgrading = 6015,
    /// `upgrade-refused`
    UpgradeRefused = 6016,
    /// `upgrade-failed`
    UpgradeFailed = 6017,
    /// `snapshot-unreadable`
    SnapshotUnreadable = 6018,
    /// `journal-unusable`
    JournalUnusable = 6020,
    /// `server-not-trusted`
    ServerNotTrusted = 6021,
    /// `daemon-exhausted`
    DaemonExhausted = 6022,
}

const ALL: [(Code, &str); 84] = [
    (Code::FrameTooLarge, "frame-too-large"),
    (Code::MalformedCbor, "malformed-cbor"),
    (Code::MalformedMessage, "malformed-message"),
    (Code::UnexpectedMessage, "unexpected-message"),
    (Code::UnexpectedDescriptors, "unexpected-descriptors"),
    (Code::MissingDescriptors, "missing-descriptors"),
    (Code::TooManyDescriptors, "too-many-descriptors"),
    (Code::ConnectionCut, "connection-cut"),
    (Code::VersionUnsupported, "version-unsupported"),
    (Code::HandshakeTimeout, "handshake-timeout"),
    (Code::RoleNotAccepted, "role-not-accepted"),
    (Code::FrameNotSendable, "frame-not-sendable"),
    (Code::DescriptorsMismatch, "descriptors-mismatch"),
    (Code::ConnectionLost, "connection-lost"),
    (Code::FrameTimeout, "frame-timeout"),
    (Code::FlowInvalid, "flow-invalid"),
    (Code::FlowUnreadable, "flow-unreadable"),
    (Code::ArtifactMissing, "artifact-missing"),
    (Code::ArtifactKindUnsupported, "artifact-kind-unsupported"),
    (Code::CompileFailed, "compile-failed"),
    (Code::FeatureUnsupported, "feature-unsupported"),
    (Code::TopicOfNoFlow, "topic-of-no-flow"),
    (Code::FlowNeedsProcesses, "flow-needs-processes"),
    (Code::FlowNotFound, "flow-not-found"),
    (Code::FlowExists, "flow-exists"),
    (Code::FlowFailed, "flow-failed"),
    (Code::FlowNotRunning, "flow-not-running"),
    (Code::NodeNotFound, "node-not-found"),
    (Code::SpawnFailed, "spawn-failed"),
    (Code::WorkerExited, "worker-exited"),
    (Code::WorkerNotReady, "worker-not-ready"),
    (Code::PluginFault, "plugin-fault"),
    (Code::PluginNotLoadable, "plugin-not-loadable"),
    (Code::TimedOut, "timed-out"),
    (Code::Cancelled, "cancelled"),
    (Code::WrongState, "wrong-state"),
    (Code::ChangeRefused, "change-refused"),
    (Code::RolloutUnderWay, "rollout-under-way"),
    (Code::RolledBack, "rolled-back"),
    (Code::RevisionNotFound, "revision-not-found"),
    (Code::CodeChanged, "code-changed"),
    (Code::FlowNotEnded, "flow-not-ended"),
    (Code::RunNotFound, "run-not-found"),
    (Code::AttachTokenUnknown, "attach-token-unknown"),
    (Code::AttachNameUnknown, "attach-name-unknown"),
    (Code::AttachNotAwaited, "attach-not-awaited"),
    (Code::AttachRefused, "attach-refused"),
    (Code::AttachNothing, "attach-nothing"),
    (Code::AttachEnded, "attach-ended"),
    (Code::NotAllowed, "not-allowed"),
    (Code::QuotaExceeded, "quota-exceeded"),
    (Code::UserNotPossible, "user-not-possible"),
    (Code::AttachWrongUser, "attach-wrong-user"),
    (Code::RouteDetached, "route-detached"),
    (Code::DescriptorRefused, "descriptor-refused"),
    (Code::RouteUnknown, "route-unknown"),
    (Code::PayloadUndecodable, "payload-undecodable"),
    (Code::PayloadUnencodable, "payload-unencodable"),
    (Code::OutOfMemory, "out-of-memory"),
    (Code::ReattachRefused, "reattach-refused"),
    (Code::ClaimRefuted, "claim-refuted"),
    (Code::PeerLied, "peer-lied"),
    (Code::AccusationUnproven, "accusation-unproven"),
    (Code::UnknownVerb, "unknown-verb"),
    (Code::BadArgument, "bad-argument"),
    (Code::DaemonUnreachable, "daemon-unreachable"),
    (Code::DaemonAlreadyRunning, "daemon-already-running"),
    (Code::DaemonStopping, "daemon-stopping"),
    (Code::ConfigInvalid, "config-invalid"),
    (Code::Internal, "internal"),
    (Code::LauncherLost, "launcher-lost"),
    (Code::SlowReader, "slow-reader"),
    (Code::SocketUnusable, "socket-unusable"),
    (Code::StateDirUnknown, "state-dir-unknown"),
    (Code::SocketInUse, "socket-in-use"),
    (Code::ServiceFailed, "service-failed"),
    (Code::FileNotOurs, "file-not-ours"),
    (Code::DaemonUpgrading, "daemon-upgrading"),
    (Code::UpgradeRefused, "upgrade-refused"),
    (Code::UpgradeFailed, "upgrade-failed"),
    (Code::SnapshotUnreadable, "snapshot-unreadable"),
    (Code::JournalUnusable, "journal-unusable"),
    (Code::ServerNotTrusted, "server-not-trusted"),
    (Code::DaemonExhausted, "daemon-exhausted"),
];

impl Code {
    /// Its name in the catalogue.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    /// The code of that number.
    pub fn of(number: u64) -> Option<Self> {
        ALL.iter().map(|entry| entry.0).find(|code| *code as u64 == number)
    }
}
