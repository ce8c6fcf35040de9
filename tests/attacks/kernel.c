/* Attacks on the kernel's own doors: mounts, namespaces, other processes, and calls with a record of holes. */
#include "attack.h"

#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

/* Does the same call by the 32-bit door, whose numbers no 64-bit filter knows. */
static long old_call(long number) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0) : "memory");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
#else
    (void)number;
    errno = ENOSYS;
    return -1;
#endif
}

/* Mounts. */
static struct outcome mount_tmpfs(char **_) { return TRY(mount("t", "/tmp", "tmpfs", 0, ""), "mounted"); }
static struct outcome mount_bind(char **_) { return TRY(mount("/", "/tmp", NULL, MS_BIND | MS_REC, NULL), "bound"); }
static struct outcome mount_proc(char **_) { return TRY(mount("p", "/tmp", "proc", 0, ""), "mounted"); }
static struct outcome mount_cgroup(char **_) {
    return TRY(mount("c", "/tmp", "cgroup", 0, "none,name=attack"), "mounted: release_agent is near");
}
static struct outcome mount_overlay(char **_) {
    return TRY(mount("o", "/tmp", "overlay", 0, "lowerdir=/etc:/proc"), "mounted");
}
static struct outcome remount_proc_sys(char **_) {
    return TRY(mount("", "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL), "writable");
}
static struct outcome remount_root_with_devices(char **_) {
    return TRY(mount("", "/", NULL, MS_REMOUNT | MS_BIND, NULL), "devices and setuid work");
}
static struct outcome umount_mask(char **_) {
    if (umount2("/proc/kcore", MNT_DETACH) == -1)
        return errno == EINVAL ? WON("may, but nothing is mounted") : REFUSED();
    return WON("unmasked");
}
static struct outcome mount_by_fsopen(char **_) { return TRY(syscall(SYS_fsopen, "tmpfs", 0), "a new mount"); }
static struct outcome mount_by_open_tree(char **_) {
    return TRY(syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */), "a copy of a mount");
}
static struct outcome mount_set_attributes(char **_) {
    uint64_t attributes[4] = {0, 1, 0, 0};
    return TRY(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, attributes, sizeof attributes), "changed");
}
static struct outcome pivot(char **_) {
    if (chdir("/") == -1)
        return REFUSED();
    if (syscall(SYS_pivot_root, ".", ".") == -1)
        return errno == EINVAL || errno == EBUSY ? WON("may, but this is no mount") : REFUSED();
    return WON("another root");
}

/* Namespaces. */
static struct outcome unshare_user(char **_) { return TRY(unshare(CLONE_NEWUSER), "all capabilities in a new one"); }
static struct outcome unshare_mounts(char **_) { return TRY(unshare(CLONE_NEWNS), "mounts of its own"); }
static struct outcome unshare_network(char **_) { return TRY(unshare(CLONE_NEWNET), "a network of its own"); }
static struct outcome unshare_cgroup(char **_) { return TRY(unshare(CLONE_NEWCGROUP), "a view of its own"); }
static struct outcome clone_user(char **_) {
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    return TRY(child, "all capabilities in a new one");
}
static struct outcome clone3_user(char **_) {
    struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    long child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0)
        _exit(0);
    return TRY(child, "all capabilities in a new one");
}
static struct outcome join_by_file(char **_) {
    int namespace = open("/proc/1/ns/mnt", O_RDONLY);
    if (namespace == -1)
        return REFUSED();
    return TRY(setns(namespace, 0), "joined");
}
static struct outcome join_by_process(char **_) {
    int process = (int)syscall(SYS_pidfd_open, 1, 0);
    if (process == -1)
        return REFUSED();
    return TRY(setns(process, CLONE_NEWNET), "joined");
}
static struct outcome hostname_change(char **_) { return TRY(sethostname("attack", 6), "renamed"); }

/* Other processes. */
static pid_t sleeper(void) {
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    return child;
}
static struct outcome trace_child(char **_) {
    pid_t child = sleeper();
    struct outcome outcome = TRY(ptrace(PTRACE_SEIZE, child, 0, 0), "traced");
    kill(child, SIGKILL);
    return outcome;
}
static struct outcome trace_me(char **_) { return TRY(ptrace(PTRACE_TRACEME, 0, 0, 0), "traced"); }
static struct outcome read_memory(char **_) {
    static char secret[8] = "secret", seen[8];
    pid_t child = sleeper();
    struct iovec here = {seen, sizeof seen}, there = {secret, sizeof secret};
    struct outcome outcome = TRY(process_vm_readv(child, &here, 1, &there, 1, 0), "read");
    kill(child, SIGKILL);
    return outcome;
}
static struct outcome write_memory(char **_) {
    static char victim[8], poison[8] = "poison";
    pid_t child = sleeper();
    struct iovec here = {poison, sizeof poison}, there = {victim, sizeof victim};
    struct outcome outcome = TRY(process_vm_writev(child, &here, 1, &there, 1, 0), "written");
    kill(child, SIGKILL);
    return outcome;
}
static struct outcome take_descriptor(char **_) {
    pid_t child = sleeper();
    int process = (int)syscall(SYS_pidfd_open, child, 0);
    struct outcome outcome = TRY(syscall(SYS_pidfd_getfd, process, 1, 0), "taken");
    kill(child, SIGKILL);
    return outcome;
}
static struct outcome compare_kernel_pointers(char **_) {
    return TRY(syscall(SYS_kcmp, getpid(), getpid(), 0, 1, 2), "compared");
}

/* The kernel's keyrings are shared between everybody with the same user id. */
static struct outcome key_add(char **_) {
    return TRY(syscall(SYS_add_key, "user", "attack", "x", 1L, -3 /* session */), "added");
}
static struct outcome key_read(char **_) {
    return TRY(syscall(SYS_keyctl, 0L /* get id */, -4L /* user */, 0L, 0L, 0L), "the user's keyring");
}
static struct outcome key_request(char **_) {
    if (syscall(SYS_request_key, "user", "attack", NULL, 0L) == -1)
        return errno == ENOKEY ? WON("asked, and the machine's /sbin/request-key may have run") : REFUSED();
    return WON("found");
}

/* Calls with a record of holes. */
static struct outcome bpf_map(char **_) {
    union bpf_attr attributes = {0};
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = attributes.value_size = 4;
    attributes.max_entries = 1;
    return TRY(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes), "a map");
}
static struct outcome bpf_program(char **_) {
    struct bpf_insn code[2] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr attributes = {0};
    attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attributes.insns = (uint64_t)(uintptr_t)code;
    attributes.insn_cnt = 2;
    attributes.license = (uint64_t)(uintptr_t) "GPL";
    return TRY(syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes), "a program in the kernel");
}
static struct outcome page_faults(char **_) { return TRY(syscall(SYS_userfaultfd, O_CLOEXEC), "faults are ours"); }
static struct outcome page_faults_of_users(char **_) {
    return TRY(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), "faults are ours");
}
static struct outcome uring(char **_) {
    struct io_uring_params parameters = {0};
    return TRY(syscall(SYS_io_uring_setup, 4, &parameters), "calls past the filter");
}
static struct outcome perf(char **_) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes};
    attributes.config = PERF_COUNT_SW_TASK_CLOCK;
    return TRY(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0), "counting");
}
static struct outcome module_load(char **_) { return TRY(syscall(SYS_init_module, "x", 1L, ""), "loaded"); }
static struct outcome module_load_file(char **_) {
    return TRY(syscall(SYS_finit_module, open("/proc/self/exe", O_RDONLY), "", 0), "loaded");
}
static struct outcome module_unload(char **_) { return TRY(syscall(SYS_delete_module, "attack", 0), "unloaded"); }
static struct outcome kernel_load(char **_) { return TRY(syscall(SYS_kexec_load, 0L, 0L, NULL, 0L), "another kernel"); }
static struct outcome clock_set(char **_) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return TRY(clock_settime(CLOCK_REALTIME, &now), "set");
}
static struct outcome clock_set_of_day(char **_) {
    struct timeval now;
    gettimeofday(&now, NULL);
    return TRY(settimeofday(&now, NULL), "set");
}
static struct outcome clock_adjust(char **_) {
    struct timex change = {.modes = ADJ_STATUS, .status = 64};
    return TRY(adjtimex(&change), "adjusted");
}
static struct outcome restart_machine(char **_) {
    /* A command that does nothing but needs the right to. */
    return TRY(syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_ON, NULL), "may");
}
static struct outcome swap_on(char **_) { return TRY(swapon("/nowhere", 0), "on"); }
static struct outcome ports(char **_) {
#ifdef __x86_64__
    return TRY(ioperm(0x80, 1, 1), "hardware");
#else
    errno = ENOSYS;
    return REFUSED();
#endif
}
static struct outcome weak_personality(char **_) {
    return TRY(personality(ADDR_NO_RANDOMIZE), "addresses are known");
}
static struct outcome accounting(char **_) { return TRY(acct("/nowhere"), "on"); }
static struct outcome kernel_log(char **_) { return TRY(syscall(SYS_syslog, 10 /* size */, NULL, 0), "read"); }
static struct outcome file_events(char **_) { return TRY(syscall(SYS_fanotify_init, 0, O_RDONLY), "events of all"); }
static struct outcome quotas(char **_) { return TRY(syscall(SYS_quotactl, 0x800001 << 8, NULL, 0, NULL), "asked"); }
static struct outcome numa_pages(char **_) {
    return TRY(syscall(SYS_migrate_pages, 1, 64L, NULL, NULL), "moved");
}
static struct outcome by_old_calls(char **_) { return TRY(old_call(21 /* mount */), "mounted"); }
static struct outcome by_x32_calls(char **_) {
    return TRY(syscall(0x40000000L | SYS_mount, "", "/tmp", "tmpfs", 0, NULL), "mounted");
}
static struct outcome raise_capabilities(char **_) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) == -1)
        return REFUSED();
    data[0].permitted |= 1U << CAP_SYS_ADMIN;
    data[0].effective |= 1U << CAP_SYS_ADMIN;
    return TRY(syscall(SYS_capset, &header, data), "an administrator");
}
static struct outcome drop_no_new_privileges(char **_) {
    return TRY(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), "setuid works again");
}
static struct outcome first_in_line(char **_) { return TRY(setpriority(PRIO_PROCESS, 0, -20), "before all others"); }
static struct outcome real_time(char **_) {
    struct sched_param parameters = {.sched_priority = 50};
    return TRY(sched_setscheduler(0, SCHED_FIFO, &parameters), "never gives way");
}
static struct outcome more_files(char **_) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max += 1;
    return TRY(setrlimit(RLIMIT_NOFILE, &limit), "more");
}

const struct attack kernel_attacks[] = {
    {"mount-tmpfs", mount_tmpfs, 0},
    {"mount-bind", mount_bind, 0},
    {"mount-proc", mount_proc, 0},
    {"mount-cgroup", mount_cgroup, 0},
    {"mount-overlay", mount_overlay, 0},
    {"remount-proc-sys", remount_proc_sys, 0},
    {"remount-root", remount_root_with_devices, 0},
    {"umount-mask", umount_mask, 0},
    {"mount-fsopen", mount_by_fsopen, 0},
    {"mount-open-tree", mount_by_open_tree, 0},
    {"mount-setattr", mount_set_attributes, 0},
    {"pivot-root", pivot, 0},
    {"unshare-user", unshare_user, 0},
    {"unshare-mounts", unshare_mounts, 0},
    {"unshare-network", unshare_network, 0},
    {"unshare-cgroup", unshare_cgroup, 0},
    {"clone-user", clone_user, 0},
    {"clone3-user", clone3_user, 0},
    {"setns-file", join_by_file, 0},
    {"setns-process", join_by_process, 0},
    {"hostname", hostname_change, 0},
    {"ptrace-child", trace_child, 0},
    {"ptrace-me", trace_me, 0},
    {"process-vm-read", read_memory, 0},
    {"process-vm-write", write_memory, 0},
    {"pidfd-getfd", take_descriptor, 0},
    {"kcmp", compare_kernel_pointers, 0},
    {"key-add", key_add, 0},
    {"key-read", key_read, 0},
    {"key-request", key_request, 0},
    {"bpf-map", bpf_map, 0},
    {"bpf-program", bpf_program, 0},
    {"userfaultfd", page_faults, 0},
    {"userfaultfd-user", page_faults_of_users, 0},
    {"io-uring", uring, 0},
    {"perf", perf, 0},
    {"module-load", module_load, 0},
    {"module-load-file", module_load_file, 0},
    {"module-unload", module_unload, 0},
    {"kexec", kernel_load, 0},
    {"clock-set", clock_set, 0},
    {"clock-set-of-day", clock_set_of_day, 0},
    {"clock-adjust", clock_adjust, 0},
    {"reboot", restart_machine, 0},
    {"swap-on", swap_on, 0},
    {"io-ports", ports, 0},
    {"personality", weak_personality, 0},
    {"accounting", accounting, 0},
    {"kernel-log", kernel_log, 0},
    {"fanotify", file_events, 0},
    {"quotactl", quotas, 0},
    {"migrate-pages", numa_pages, 0},
    {"calls-of-32-bit", by_old_calls, 0},
    {"calls-of-x32", by_x32_calls, 0},
    {"capset", raise_capabilities, 0},
    {"no-new-privs-off", drop_no_new_privileges, 0},
    {"priority", first_in_line, 0},
    {"real-time", real_time, 0},
    {"more-open-files", more_files, 0},
    {0},
};
