"""The plugins that come with Chronetix, by their uri. Each is an ordinary plugin, imported when a node uses it."""

BUILTINS = {
    "builtin://chronetix/system/timer": "chronetix.nodeworker.builtins.timer:TimerSource",
    "builtin://chronetix/system/eventbus-source": "chronetix.nodeworker.builtins.eventbus:EventBusSource",
    "builtin://chronetix/system/eventbus-sink": "chronetix.nodeworker.builtins.eventbus:EventBusSink",
    "builtin://chronetix/resource/netinfo": "chronetix.nodeworker.builtins.netinfo:NetInfo",
}
"""uri to ``module:object``. Each of these modules says in ``PARAMS`` which params the builtin reads."""
