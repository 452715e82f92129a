# find_package(chronetix) gives the targets chronetix::chronetix (shared) and chronetix::static.
get_filename_component(_chronetix_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
find_package(Threads REQUIRED)
if(NOT TARGET chronetix::chronetix)
  add_library(chronetix::chronetix SHARED IMPORTED)
  set_target_properties(chronetix::chronetix PROPERTIES
    IMPORTED_LOCATION "${_chronetix_prefix}/lib/libchronetix.so"
    IMPORTED_SONAME "libchronetix.so.0"
    INTERFACE_INCLUDE_DIRECTORIES "${_chronetix_prefix}/include")
  add_library(chronetix::static STATIC IMPORTED)
  set_target_properties(chronetix::static PROPERTIES
    IMPORTED_LOCATION "${_chronetix_prefix}/lib/libchronetix.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_chronetix_prefix}/include"
    INTERFACE_LINK_LIBRARIES "cbor;Threads::Threads")
endif()
