/* Attacks through files: the kernel's settings, control groups, devices, and whatever a launch may have left open. */
#include "attack.h"

#include <dirent.h>
#include <glob.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>

/* Opens for writing, and writes what is there already or nothing, so that it does no harm where it wins. */
static struct outcome overwrite(const char *path) {
    int file = open(path, O_WRONLY);
    return TRY(file, path);
}
/* The first of several that is let in, or the refusal of the last. */
static struct outcome overwrite_any(const char *pattern) {
    glob_t found;
    if (glob(pattern, 0, NULL, &found) != 0) {
        errno = ENOENT;
        return REFUSED();
    }
    struct outcome outcome = {0};
    for (size_t at = 0; at < found.gl_pathc; at++) {
        outcome = overwrite(found.gl_pathv[at]);
        if (outcome.kind != refused)
            break;
    }
    return outcome;
}
static struct outcome open_device(const char *path) { return TRY(open(path, O_RDONLY | O_NONBLOCK), path); }

/* Settings of the machine. */
static struct outcome core_pattern(char **_) { return overwrite("/proc/sys/kernel/core_pattern"); }
static struct outcome modprobe_path(char **_) { return overwrite("/proc/sys/kernel/modprobe"); }
static struct outcome binfmt(char **_) { return overwrite("/proc/sys/fs/binfmt_misc/register"); }
static struct outcome forwarding(char **_) { return overwrite("/proc/sys/net/ipv4/ip_forward"); }
static struct outcome namespaces_max(char **_) { return overwrite("/proc/sys/user/max_user_namespaces"); }
static struct outcome sysrq(char **_) { return overwrite("/proc/sysrq-trigger"); }
static struct outcome interrupts(char **_) { return overwrite_any("/proc/irq/*/smp_affinity"); }
static struct outcome uevent_helper(char **_) { return overwrite("/sys/kernel/uevent_helper"); }
static struct outcome uevent(char **_) { return overwrite_any("/sys/class/net/*/uevent"); }
static struct outcome huge_pages(char **_) { return overwrite("/sys/kernel/mm/transparent_hugepage/enabled"); }
static struct outcome power_state(char **_) { return overwrite("/sys/power/state"); }
static struct outcome debugfs(char **_) { return overwrite_any("/sys/kernel/debug/*"); }
static struct outcome tracefs(char **_) { return overwrite_any("/sys/kernel/tracing/*"); }
static struct outcome firmware(char **_) { return open_device("/sys/firmware/acpi/tables/DSDT"); }

/* Control groups. */
static struct outcome release_agent(char **_) { return overwrite_any("/sys/fs/cgroup/*/release_agent"); }
static struct outcome release_notify(char **_) { return overwrite_any("/sys/fs/cgroup/*/notify_on_release"); }
static struct outcome cgroup_limit(char **_) {
    struct outcome outcome = overwrite("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    return outcome.kind == refused && outcome.error == ENOENT ? overwrite("/sys/fs/cgroup/memory.max") : outcome;
}
static struct outcome cgroup_leave(char **_) {
    struct outcome outcome = overwrite("/sys/fs/cgroup/pids/cgroup.procs");
    return outcome.kind == refused && outcome.error == ENOENT ? overwrite("/sys/fs/cgroup/cgroup.procs") : outcome;
}
static struct outcome cgroup_make(char **_) {
    const char *path = "/sys/fs/cgroup/memory/attack";
    int made = mkdir(path, 0755);
    if (made == -1 && errno == ENOENT) {
        path = "/sys/fs/cgroup/attack";
        made = mkdir(path, 0755);
    }
    if (made == -1)
        return REFUSED();
    rmdir(path);
    return WON("made");
}
static struct outcome cgroup_above(char **_) {
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[4096];
    while (file && fgets(line, sizeof line, file))
        if (!strstr(line, ":/\n")) {
            line[strcspn(line, "\n")] = 0;
            return WON(line);
        }
    return HELD("it sees itself at the top");
}

/* What tells about the machine. */
static struct outcome kernel_memory(char **_) {
    int file = open("/proc/kcore", O_RDONLY);
    char byte;
    if (file == -1)
        return REFUSED();
    return read(file, &byte, 1) > 0 ? WON("the machine's memory") : HELD("empty");
}
static struct outcome kernel_messages(char **_) { return open_device("/proc/kmsg"); }
static struct outcome kernel_addresses(char **_) {
    FILE *file = fopen("/proc/kallsyms", "r");
    unsigned long long address = 0;
    if (!file)
        return REFUSED();
    for (int line = 0; line < 1000; line++) {
        if (fscanf(file, "%llx%*[^\n]", &address) != 1)
            break;
        if (address)
            return WON("addresses of the kernel");
    }
    return HELD("zeros");
}
static struct outcome keys_of_all(char **_) {
    int file = open("/proc/keys", O_RDONLY);
    char byte;
    if (file == -1)
        return REFUSED();
    return read(file, &byte, 1) > 0 ? WON("names of keys") : HELD("empty");
}
static struct outcome processes_of_all(char **_) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[300], name[64] = "";
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fgets(name, sizeof name, file) && (!strncmp(name, "tram", 4) || !strncmp(name, "kthreadd", 8)))
            return WON(name);
        fclose(file);
    }
    return HELD("its own only");
}
static struct outcome mounts_of_the_machine(char **_) {
    FILE *file = fopen("/proc/self/mountinfo", "r");
    char line[8192];
    while (file && fgets(line, sizeof line, file))
        if (strstr(line, "upperdir=/") && !strstr(line, "upperdir=/proc/self/fd/")) {
            line[100] = 0;
            return WON(line);
        }
    return HELD("no path of the machine");
}

/* Ways out of the root. */
static struct outcome descriptors_left_open(char **_) {
    for (int fd = 3; fd < 1024; fd++) {
        char path[64], target[256] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) > 0)
            return WON(target);
    }
    return HELD("the three streams only");
}
static struct outcome root_of_the_first(char **_) {
    struct stat own, other;
    if (stat("/", &own) == -1 || stat("/proc/1/root/..", &other) == -1)
        return REFUSED();
    return own.st_ino == other.st_ino && own.st_dev == other.st_dev ? HELD("the same root") : WON("another root");
}
static struct outcome chroot_out(char **_) {
    struct stat own, other;
    mkdir("/tmp/attack-root", 0755);
    int outside = open("/", O_RDONLY | O_DIRECTORY);
    if (stat("/", &own) == -1 || chroot("/tmp/attack-root") == -1)
        return REFUSED();
    /* The old escape: a descriptor above the new root, and then as far up as it goes. */
    if (fchdir(outside) == -1)
        return REFUSED();
    for (int step = 0; step < 64; step++)
        if (chdir("..") == -1)
            return REFUSED();
    if (stat(".", &other) == -1)
        return REFUSED();
    return own.st_ino == other.st_ino && own.st_dev == other.st_dev ? HELD("back at its own root") : WON("higher up");
}
static struct outcome by_handle(char **_) {
    /* The root of most file systems has the inode 2: no name is needed, and no path is checked. */
    struct {
        struct file_handle head;
        unsigned char bytes[8];
    } handle = {.head = {.handle_bytes = 8, .handle_type = 1}, .bytes = {2}};
    int mount = open("/", O_RDONLY | O_DIRECTORY);
    if (open_by_handle_at(mount, &handle.head, O_RDONLY) == -1)
        return errno == ESTALE ? WON("may, but the handle is stale") : REFUSED();
    return WON("any file of the machine");
}
static struct outcome runtime_program(char **_) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[300], target[300] = "";
        struct stat status, same;
        snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
        if (readlink(path, target, sizeof target - 1) <= 0 || stat(path, &status) == -1)
            continue;
        /* A program that has no name in this root is the machine's. */
        if (stat(target, &same) == -1 || same.st_ino != status.st_ino)
            return WON(target);
    }
    return HELD("programs of its own only");
}

/* SECONDS at most: a program of the machine is in here for a moment whenever somebody runs a command inside. Catch it, and write
 * to it: the next command is then ours, outside (CVE-2019-5736). The caller runs commands meanwhile. */
static struct outcome catch_exec(char **arguments) {
    time_t end = time(NULL) + atoi(arguments[0]);
    int caught = 0, refusals = 0;
    char detail[100];
    while (time(NULL) < end && caught < 5) {
        DIR *directory = opendir("/proc");
        struct dirent *entry;
        while (directory && (entry = readdir(directory))) {
            char path[64], name[64] = "";
            int pid = atoi(entry->d_name);
            if (!pid)
                continue;
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            int file = open(path, O_RDONLY);
            if (file == -1)
                continue;
            ssize_t length = read(file, name, sizeof name - 1);
            close(file);
            if (length <= 0 || strncmp(name, "tram", 4))
                continue;
            caught++;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            if (open(path, O_WRONLY) != -1)
                return WON("the machine's program can be written to");
            snprintf(path, sizeof path, "/proc/%d/root/proc/sysrq-trigger", pid);
            if (open(path, O_WRONLY) != -1)
                return WON("the machine's root");
            refusals++;
        }
        closedir(directory);
    }
    snprintf(detail, sizeof detail, "%d refused of %d caught", refusals, caught);
    return HELD(detail);
}

/* Devices. */
static struct outcome node(mode_t kind, int major, int minor) {
    unlink("/tmp/node");
    if (mknod("/tmp/node", kind | 0600, makedev(major, minor)) == -1)
        return REFUSED();
    return TRY(open("/tmp/node", O_RDONLY | O_NONBLOCK), "a device");
}
static struct outcome node_disk(char **_) { return node(S_IFBLK, 254, 0); }
static struct outcome node_loop(char **_) { return node(S_IFBLK, 7, 0); }
static struct outcome node_memory(char **_) { return node(S_IFCHR, 1, 1); }
static struct outcome node_log(char **_) { return node(S_IFCHR, 1, 11); }
static struct outcome device_memory(char **_) { return open_device("/dev/mem"); }
static struct outcome device_loop(char **_) { return open_device("/dev/loop-control"); }
static struct outcome device_kvm(char **_) { return open_device("/dev/kvm"); }
static struct outcome device_fuse(char **_) { return open_device("/dev/fuse"); }
static struct outcome device_tun(char **_) { return open_device("/dev/net/tun"); }
static struct outcome type_into_terminal(char **_) {
    int terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    return TRY(ioctl(terminal, TIOCSTI, "x"), "typed");
}

/* Its own standing. */
static struct outcome never_killed(char **_) {
    int file = open("/proc/self/oom_score_adj", O_WRONLY);
    if (file == -1)
        return REFUSED();
    return TRY(write(file, "-1000", 5), "never killed");
}
static struct outcome map_ids(char **_) {
    int file = open("/proc/self/uid_map", O_WRONLY);
    if (file == -1)
        return REFUSED();
    return TRY(write(file, "0 0 1", 5), "the machine's root");
}
static struct outcome trusted_attribute(char **_) {
    close(open("/tmp/attribute", O_CREAT | O_WRONLY, 0600));
    return TRY(setxattr("/tmp/attribute", "trusted.overlay.redirect", "/", 1, 0), "the overlay believes it");
}
static struct outcome immutable_file(char **_) {
    int file = open("/tmp/immutable", O_CREAT | O_RDONLY, 0600), flags = FS_IMMUTABLE_FL;
    if (ioctl(file, FS_IOC_SETFLAGS, &flags) == -1)
        return REFUSED();
    flags = 0;
    ioctl(file, FS_IOC_SETFLAGS, &flags);
    return WON("a file that cannot be removed");
}

const struct attack file_attacks[] = {
    {"core-pattern", core_pattern, 0},
    {"modprobe-path", modprobe_path, 0},
    {"binfmt-misc", binfmt, 0},
    {"ip-forward", forwarding, 0},
    {"max-user-namespaces", namespaces_max, 0},
    {"sysrq", sysrq, 0},
    {"irq-affinity", interrupts, 0},
    {"uevent-helper", uevent_helper, 0},
    {"uevent", uevent, 0},
    {"huge-pages", huge_pages, 0},
    {"power-state", power_state, 0},
    {"debugfs", debugfs, 0},
    {"tracefs", tracefs, 0},
    {"firmware", firmware, 0},
    {"release-agent", release_agent, 0},
    {"notify-on-release", release_notify, 0},
    {"cgroup-limit", cgroup_limit, 0},
    {"cgroup-leave", cgroup_leave, 0},
    {"cgroup-make", cgroup_make, 0},
    {"cgroup-above", cgroup_above, 0},
    {"kcore", kernel_memory, 0},
    {"kmsg", kernel_messages, 0},
    {"kallsyms", kernel_addresses, 0},
    {"proc-keys", keys_of_all, 0},
    {"processes-of-all", processes_of_all, 0},
    {"mounts-of-the-machine", mounts_of_the_machine, 0},
    {"descriptors-left-open", descriptors_left_open, 0},
    {"root-of-the-first", root_of_the_first, 0},
    {"chroot-out", chroot_out, 0},
    {"open-by-handle", by_handle, 0},
    {"runtime-program", runtime_program, 0},
    {"catch-exec", catch_exec, 1},
    {"node-disk", node_disk, 0},
    {"node-loop", node_loop, 0},
    {"node-memory", node_memory, 0},
    {"node-log", node_log, 0},
    {"device-memory", device_memory, 0},
    {"device-loop", device_loop, 0},
    {"device-kvm", device_kvm, 0},
    {"device-fuse", device_fuse, 0},
    {"device-tun", device_tun, 0},
    {"type-into-terminal", type_into_terminal, 0},
    {"never-killed", never_killed, 0},
    {"map-ids", map_ids, 0},
    {"trusted-attribute", trusted_attribute, 0},
    {"immutable-file", immutable_file, 0},
    {0},
};
