#!/bin/bash
# Stands in for apptainer and singularity: exec [--nv] [--overlay DIR:ro] [--bind SOURCE[:PLACE]]... [--pwd DIR] IMAGE COMMAND...
# A root of its own that holds the system's /usr without Slurm's clients, IMAGE (a folder) as /image, the overlay as /ext3, and the binds;
# /tmp and HOME of the host are not in it. Where user namespaces are forbidden, only PATH is another; it says which.
set -u
[ "$1" = exec ] || { echo "stand-in: only exec" >&2; exit 2; }
shift
binds=() overlay='' inside=/
while :; do
    case $1 in
        --nv) shift ;;
        --overlay) overlay=${2%:ro}; [ "$2" != "$overlay" ] || { echo "stand-in: overlay $2 is not read-only" >&2; exit 2; }; shift 2 ;;
        --bind) binds+=("$2"); shift 2 ;;
        --pwd) inside=$2; shift 2 ;;
        *) break ;;
    esac
done
image=$1
shift
export PATH=/image/bin:/usr/bin:/bin
if ! unshare -rm true 2> /dev/null; then
    echo "stand-in: not isolated" >&2
    export PATH=$image/bin
    cd "$inside" && exec "${1/#\/ext3/$overlay}" "${@:2}"
fi
export image overlay inside
# shellcheck disable=SC2016
exec unshare -rm /bin/bash -c '
    count=$1; shift
    root=/mnt
    mount -t tmpfs none "$root" || exit 3
    show() { # SOURCE PLACE
        if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}" && touch "$root$2"; fi
        mount --rbind "$1" "$root$2" || { echo "stand-in: cannot bind $1" >&2; exit 3; }
    }
    for each in /usr /etc /proc /dev /sys; do show "$each" "$each"; done
    for each in bin sbin lib lib64; do ln -s "usr/$each" "$root/$each"; done
    for each in sbatch squeue scontrol scancel sacct sacctmgr sinfo srun; do
        [ ! -e "$root/usr/bin/$each" ] || mount --bind /dev/null "$root/usr/bin/$each"
    done
    mkdir -m 1777 "$root/tmp"
    show "$image" /image
    if [ -n "$overlay" ]; then show "$overlay" /ext3; mount -o remount,bind,ro "$root/ext3" || exit 3; fi
    for each in "${@:1:count}"; do
        place=${each#*:}
        show "${each%%:*}" "${place%%:*}"
    done
    exec /usr/sbin/chroot "$root" /bin/bash -c "cd \"\$inside\" && exec \"\$@\"" inside "${@:count+1}"
' stand-in "${#binds[@]}" "${binds[@]}" "$@"
