"""The configuration files of the private cluster, as templates."""

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job is held for the credential's life, 120 s by default; with 5 it comes back in about 6 s.
AuthInfo=socket={dir}/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
SlurmctldPidFile={dir}/slurmctld.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdSpoolDir={dir}/spool-%n
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmdLogFile={dir}/slurmd-%n.log
SlurmdParameters=config_overrides
# linuxproc, not pgid: only tracked processes get the signals, as on a real cluster.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=5
MinJobAge=300
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
MaxArraySize={max_array_size}
MailProg={dir}/mail.sh
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
# Under munge the password is the socket that clients of slurmdbd use.
AccountingStoragePass={dir}/munge.socket
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 GraceTime=10
PartitionName=cancel Nodes=ALL DefaultTime=10 PriorityTier=1 GraceTime=10 PreemptMode=CANCEL
PartitionName=abrupt Nodes=ALL DefaultTime=10 PriorityTier=1 GraceTime=0
PartitionName=high Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={dir}/slurmdbd.pid
LogFile={dir}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass={sql_password}
StorageLoc=slurm_acct
"""
