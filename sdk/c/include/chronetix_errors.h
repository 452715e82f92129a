/* The error catalogue, from protocol/errors.json: `make reference` draws it anew. Functions return codes negated. */
#ifndef CHRONETIX_ERRORS_H
#define CHRONETIX_ERRORS_H

/* X(what follows CHX_E_, its code, its name) for each error. */
#define CHX_ERROR_LIST(X) \
    X(FRAME_TOO_LARGE, 1001, "frame-too-large") \
    X(MALFORMED_CBOR, 1002, "malformed-cbor") \
    X(MALFORMED_MESSAGE, 1003, "malformed-message") \
    X(UNEXPECTED_MESSAGE, 1004, "unexpected-message") \
    X(UNEXPECTED_DESCRIPTORS, 1005, "unexpected-descriptors") \
    X(MISSING_DESCRIPTORS, 1006, "missing-descriptors") \
    X(TOO_MANY_DESCRIPTORS, 1007, "too-many-descriptors") \
    X(CONNECTION_CUT, 1008, "connection-cut") \
    X(VERSION_UNSUPPORTED, 1009, "version-unsupported") \
    X(HANDSHAKE_TIMEOUT, 1010, "handshake-timeout") \
    X(ROLE_NOT_ACCEPTED, 1011, "role-not-accepted") \
    X(FRAME_NOT_SENDABLE, 1012, "frame-not-sendable") \
    X(DESCRIPTORS_MISMATCH, 1013, "descriptors-mismatch") \
    X(CONNECTION_LOST, 1014, "connection-lost") \
    X(FRAME_TIMEOUT, 1015, "frame-timeout") \
    X(FLOW_INVALID, 2001, "flow-invalid") \
    X(FLOW_UNREADABLE, 2002, "flow-unreadable") \
    X(ARTIFACT_MISSING, 2003, "artifact-missing") \
    X(ARTIFACT_KIND_UNSUPPORTED, 2004, "artifact-kind-unsupported") \
    X(COMPILE_FAILED, 2005, "compile-failed") \
    X(FEATURE_UNSUPPORTED, 2006, "feature-unsupported") \
    X(TOPIC_OF_NO_FLOW, 2007, "topic-of-no-flow") \
    X(FLOW_NEEDS_PROCESSES, 2008, "flow-needs-processes") \
    X(FLOW_NOT_FOUND, 3001, "flow-not-found") \
    X(FLOW_EXISTS, 3002, "flow-exists") \
    X(FLOW_FAILED, 3003, "flow-failed") \
    X(FLOW_NOT_RUNNING, 3004, "flow-not-running") \
    X(NODE_NOT_FOUND, 3005, "node-not-found") \
    X(SPAWN_FAILED, 3006, "spawn-failed") \
    X(WORKER_EXITED, 3007, "worker-exited") \
    X(WORKER_NOT_READY, 3008, "worker-not-ready") \
    X(PLUGIN_FAULT, 3009, "plugin-fault") \
    X(PLUGIN_NOT_LOADABLE, 3010, "plugin-not-loadable") \
    X(TIMED_OUT, 3011, "timed-out") \
    X(CANCELLED, 3012, "cancelled") \
    X(WRONG_STATE, 3013, "wrong-state") \
    X(CHANGE_REFUSED, 3014, "change-refused") \
    X(ROLLOUT_UNDER_WAY, 3015, "rollout-under-way") \
    X(ROLLED_BACK, 3016, "rolled-back") \
    X(REVISION_NOT_FOUND, 3017, "revision-not-found") \
    X(CODE_CHANGED, 3018, "code-changed") \
    X(FLOW_NOT_ENDED, 3019, "flow-not-ended") \
    X(RUN_NOT_FOUND, 3020, "run-not-found") \
    X(ATTACH_TOKEN_UNKNOWN, 3021, "attach-token-unknown") \
    X(ATTACH_NAME_UNKNOWN, 3022, "attach-name-unknown") \
    X(ATTACH_NOT_AWAITED, 3023, "attach-not-awaited") \
    X(ATTACH_REFUSED, 3024, "attach-refused") \
    X(ATTACH_NOTHING, 3025, "attach-nothing") \
    X(ATTACH_ENDED, 3026, "attach-ended") \
    X(NOT_ALLOWED, 4001, "not-allowed") \
    X(QUOTA_EXCEEDED, 4002, "quota-exceeded") \
    X(USER_NOT_POSSIBLE, 4003, "user-not-possible") \
    X(ATTACH_WRONG_USER, 4004, "attach-wrong-user") \
    X(ROUTE_DETACHED, 5001, "route-detached") \
    X(DESCRIPTOR_REFUSED, 5002, "descriptor-refused") \
    X(ROUTE_UNKNOWN, 5003, "route-unknown") \
    X(PAYLOAD_UNDECODABLE, 5004, "payload-undecodable") \
    X(PAYLOAD_UNENCODABLE, 5005, "payload-unencodable") \
    X(OUT_OF_MEMORY, 5006, "out-of-memory") \
    X(REATTACH_REFUSED, 5007, "reattach-refused") \
    X(CLAIM_REFUTED, 5008, "claim-refuted") \
    X(PEER_LIED, 5009, "peer-lied") \
    X(ACCUSATION_UNPROVEN, 5010, "accusation-unproven") \
    X(UNKNOWN_VERB, 6001, "unknown-verb") \
    X(BAD_ARGUMENT, 6002, "bad-argument") \
    X(DAEMON_UNREACHABLE, 6003, "daemon-unreachable") \
    X(DAEMON_ALREADY_RUNNING, 6004, "daemon-already-running") \
    X(DAEMON_STOPPING, 6005, "daemon-stopping") \
    X(CONFIG_INVALID, 6006, "config-invalid") \
    X(INTERNAL, 6007, "internal") \
    X(LAUNCHER_LOST, 6008, "launcher-lost") \
    X(SLOW_READER, 6009, "slow-reader") \
    X(SOCKET_UNUSABLE, 6010, "socket-unusable") \
    X(STATE_DIR_UNKNOWN, 6011, "state-dir-unknown") \
    X(SOCKET_IN_USE, 6012, "socket-in-use") \
    X(SERVICE_FAILED, 6013, "service-failed") \
    X(FILE_NOT_OURS, 6014, "file-not-ours") \
    X(DAEMON_UPGRADING, 6015, "daemon-upgrading") \
    X(UPGRADE_REFUSED, 6016, "upgrade-refused") \
    X(UPGRADE_FAILED, 6017, "upgrade-failed") \
    X(SNAPSHOT_UNREADABLE, 6018, "snapshot-unreadable") \
    X(JOURNAL_UNUSABLE, 6020, "journal-unusable") \
    X(SERVER_NOT_TRUSTED, 6021, "server-not-trusted") \
    X(DAEMON_EXHAUSTED, 6022, "daemon-exhausted")

#define CHX_ERROR_CODE(constant, code, name) CHX_E_##constant = code,
enum chx_code { CHX_ERROR_LIST(CHX_ERROR_CODE) };
#undef CHX_ERROR_CODE

#endif
